//! The structured matrices that have names, as maps of the algebra.

use super::algebra::{Chain, Map};
use super::construct::{hadamard, log_size};
use danaus_kernel::ops::kronecker_sparse::{Pattern, butterfly_steps, twiddle_shape};
use danaus_tensor::{Error, Result, Tensor};

/// Ones on the main diagonal: pads or cuts vectors.
fn fit(rows: usize, cols: usize) -> Map {
    Map::Identity { rows, cols }
}

/// Cuts or pads the input to the columns of `map`, and its result to `rows`; nothing where they
/// fit.
pub(super) fn framed(map: Map, rows: usize, cols: usize) -> Result<Map> {
    let mut framed = map;
    if framed.cols() != cols {
        framed = fit(framed.cols(), cols).then(&framed)?;
    }
    if framed.rows() != rows {
        let found = framed.rows();
        framed = framed.then(&fit(rows, found))?;
    }
    Ok(framed)
}

/// A butterfly layer: twiddle `[nstacks, nblocks, log_n, n / 2, 2, 2]`, `cols` inputs cut or padded
/// to n for every stack, the first `rows` of the `nstacks n` results kept.
///
/// Block b has increasing strides where `increasing` XOR (b odd).
///
/// # Errors
/// When the shape is another one, or `rows` exceeds the stacks.
pub fn butterfly(twiddle: &Tensor, increasing: bool, rows: usize, cols: usize) -> Result<Map> {
    let [stacks, nblocks, log_n] = twiddle_shape(twiddle)?;
    let n = 1usize << log_n;
    if !(1..=stacks * n).contains(&rows) {
        return Err(Error::argument("butterfly", "rows", rows, format!("1..={}", stacks * n)));
    }
    let values = match stacks {
        1 => twiddle.clone(),
        _ => twiddle.permute(&[1, 2, 0, 3, 4, 5])?,
    };
    let steps = butterfly_steps([stacks, nblocks, log_n], increasing, 0);
    let chain = Map::Chain(Chain::from_steps(steps, vec![values])?);
    if stacks == 1 {
        return framed(chain, rows, cols);
    }
    let copies = Map::Repeated { times: stacks, n, transposed: false };
    let copies = framed(copies, stacks * n, cols)?;
    framed(copies.then(&chain)?, rows, cols)
}

/// A Kaleidoscope matrix of class `(BB*)^w_e` acting on n points: the twiddle `[1, 2 w, log(e n), e
/// n / 2, 2, 2]` has decreasing strides first; vectors are padded with zeros to e n and cut to n.
///
/// # Errors
/// When the number of blocks is odd, or e n < n.
pub fn kaleidoscope(twiddle: &Tensor, n: usize) -> Result<Map> {
    let [_, nblocks, log_n] = twiddle_shape(twiddle)?;
    if nblocks % 2 == 1 {
        let valid = "an even number: a width of w has 2 w blocks";
        return Err(Error::argument("kaleidoscope", "blocks", nblocks, valid));
    }
    if n > 1 << log_n {
        let valid = format!("at most {}, the size of the butterfly", 1 << log_n);
        return Err(Error::argument("kaleidoscope", "n", n, valid));
    }
    butterfly(twiddle, false, n, n)
}

/// A Monarch matrix: w1 `[k, q, p]`, w2 `[l, s, r]` with `l r = k q`.
///
/// # Errors
/// When shapes do not fit.
pub fn monarch(w1: &Tensor, w2: &Tensor) -> Result<Map> {
    let (&[k, q, p], &[l, s, r]) = (w1.dims(), w2.dims()) else {
        let wrong = if w1.rank() == 3 { w2 } else { w1 };
        return Err(Error::shape("monarch", "weights", wrong.shape(), "[blocks, out, in]"));
    };
    if l * r != k * q {
        let expected = format!("[l, s, r] with l r = {} = k q of w1", k * q);
        return Err(Error::shape("monarch", "w2", w2.shape(), expected));
    }
    let first = (Pattern::new(k, q, p, 1), w1.clone());
    let second = (Pattern::new(1, s, r, l), w2.clone());
    Ok(Map::Chain(Chain::new(&[first, second])?))
}

/// A Monarch layer for any sizes: inputs padded, results cut.
///
/// # Errors
/// As [`monarch`], and when the factors are smaller than the sizes.
pub fn monarch_layer(w1: &Tensor, w2: &Tensor, rows: usize, cols: usize) -> Result<Map> {
    let map = monarch(w1, w2)?;
    if map.rows() < rows || map.cols() < cols {
        let given = format!("{} x {}", map.rows(), map.cols());
        let valid = format!("at least {rows} x {cols}");
        return Err(Error::argument("monarch_layer", "size of the factors", given, valid));
    }
    framed(map, rows, cols)
}

/// Blocks along the diagonal: `[blocks, out, in]`.
///
/// # Errors
/// When the shape is another one.
pub fn block_diagonal(blocks: &Tensor) -> Result<Map> {
    let &[count, out, inp] = blocks.dims() else {
        let expected = "[blocks, out, in]";
        return Err(Error::shape("block_diagonal", "blocks", blocks.shape(), expected));
    };
    Ok(Map::Chain(Chain::new(&[(Pattern::new(count, out, inp, 1), blocks.clone())])?))
}

/// `U V` with u `[rows, rank]` and v `[rank, cols]`.
///
/// # Errors
/// When shapes do not fit.
pub fn low_rank(u: &Tensor, v: &Tensor) -> Result<Map> {
    Map::dense(v)?.then(&Map::dense(u)?)
}

/// The circulant matrix of a first column, multiplied by a transform of its own length or longer.
///
/// # Errors
/// When the tensor is no vector.
pub fn circulant(column: &Tensor) -> Result<Map> {
    let n = column.elem_count();
    if column.rank() != 1 || n == 0 {
        return Err(Error::shape("circulant", "column", column.shape(), "[n], n at least 1"));
    }
    // Above the diagonal the column comes back from its end.
    let first = column.narrow(0, 0, 1)?;
    let row = Tensor::cat(&[&first, &column.narrow(0, 1, n - 1)?.flip(0)?], 0)?;
    Ok(Map::Toeplitz { col: column.clone(), row })
}

/// The Toeplitz matrix of a first column and a first row (whose first element is not used).
///
/// # Errors
/// When either is no vector with elements.
pub fn toeplitz(col: &Tensor, row: &Tensor) -> Result<Map> {
    for (name, values) in [("col", col), ("row", row)] {
        if values.rank() != 1 || values.elem_count() == 0 {
            return Err(Error::shape("toeplitz", name, values.shape(), "[n], n at least 1"));
        }
    }
    Ok(Map::Toeplitz { col: col.clone(), row: row.clone() })
}

/// `H D_last .. H D_0` with the orthonormal Hadamard matrix H and diagonals `[count, n]`: three of
/// them with random signs stand for a random rotation (structured orthogonal random features).
///
/// # Errors
/// When the shape is another one, or n is no power of two.
pub fn hadamard_diagonal(diagonals: &Tensor) -> Result<Map> {
    let &[count, n] = diagonals.dims() else {
        let expected = "[count, n]";
        return Err(Error::shape("hadamard_diagonal", "diagonals", diagonals.shape(), expected));
    };
    log_size("hadamard_diagonal", n)?;
    let hadamard = hadamard(n, true)?;
    let each = |i: usize| -> Result<[Map; 2]> {
        Ok([Map::diagonal(&diagonals.select(0, i)?)?, hadamard.clone()])
    };
    Map::product((0..count).map(each).collect::<Result<Vec<_>>>()?.into_iter().flatten())
}

/// Fastfood: `D3 H D2 P H D1` with the orthonormal Hadamard matrix H.
///
/// # Errors
/// As [`hadamard_diagonal`] and [`Map::permutation`].
pub fn fastfood(d1: &Tensor, d2: &Tensor, d3: &Tensor, perm: &[usize]) -> Result<Map> {
    let hadamard = hadamard(perm.len(), true)?;
    Map::product([
        Map::diagonal(d1)?,
        hadamard.clone(),
        Map::permutation(perm)?,
        Map::diagonal(d2)?,
        hadamard,
        Map::diagonal(d3)?,
    ])
}
