//! What structure a matrix has: how its singular values decay, its displacement for the operators of
//! named classes, and how near structured formats of equal size come.
//!
//! A displacement of low rank means a fast product: `M - Z M Z^T` (rank 2 for Toeplitz matrices), `M - Z M
//! Z` (Hankel), `Z_1 M - M Z_-1` (either, cyclic) for the shift Z and its cyclic forms Z_f (Kailath, Kung,
//! Morf, 1979). Ranks are numerical: singular values above the noise that rounding the elements to
//! their type leaves, `eps |M| (1 / sqrt(rows) + 1 / sqrt(cols))`, the norm of a matrix of independent
//! errors of that size.

use super::{Entries, errors, project_low_rank};
use crate::structured::{Format, PixelflySizes};
use danaus_tensor::{DType, Device, Error, Result, Tensor};
use serde::Serialize;

/// Shares of the dense parameters that formats are compared at.
const SHARES: [f64; 3] = [0.5, 0.25, 0.125];

/// Parts of the squared norm that ranks are told for.
const ENERGIES: [f64; 3] = [0.5, 0.9, 0.99];

/// What [`analyze`] finds.
#[derive(Clone, Debug, Serialize)]
pub struct Analysis {
    /// Rows and columns.
    pub shape: [usize; 2],
    /// Frobenius norm.
    pub norm: f64,
    /// The matrix itself.
    pub matrix: Spectrum,
    /// Its displacements.
    pub displacements: Vec<Displacement>,
    /// Formats at equal budgets.
    pub formats: Vec<Fit>,
}

/// Singular values, summed up.
#[derive(Clone, Debug, Serialize)]
pub struct Spectrum {
    /// How many are above the noise.
    pub rank: usize,
    /// How many there are.
    pub of: usize,
    /// Squared Frobenius norm over the squared largest one.
    pub stable_rank: f64,
    /// The rank that holds 50, 90 and 99 percent of the squared norm.
    pub energy_ranks: [usize; 3],
    /// The largest.
    pub largest: f64,
    /// Those at 0, 1/8, .., 1 of their number, over the largest.
    pub decay: Vec<f64>,
}

/// A displacement of the matrix.
#[derive(Clone, Debug, Serialize)]
pub struct Displacement {
    /// Which operators.
    pub operators: &'static str,
    /// Its norm over that of the matrix.
    pub relative_norm: f64,
    /// Its singular values.
    pub spectrum: Spectrum,
}

/// A format near the matrix.
#[derive(Clone, Debug, Serialize)]
pub struct Fit {
    /// Share of the dense parameters it was allowed.
    pub share: f64,
    /// Which one.
    pub format: String,
    /// Its parameters.
    pub parameters: usize,
    /// Its distance, as a part of the norm.
    pub relative_error: f64,
}

/// Reports on a real matrix. Costs four singular value decompositions of it, and those of the slices of
/// a few Monarch matrices.
///
/// # Errors
/// When the matrix is none, empty, complex or not finite.
pub fn analyze(matrix: &Tensor) -> Result<Analysis> {
    const OP: &str = "analyze";
    if matrix.dtype().is_complex() {
        return Err(Error::dtype(OP, "matrix", matrix.dtype(), "real numbers"));
    }
    let entries = Entries::of(OP, matrix)?;
    let shape = [entries.rows, entries.cols];
    if shape.contains(&0) {
        return Err(Error::shape(OP, "matrix", matrix.shape(), "at least one element"));
    }
    let eps = epsilon(matrix.dtype());
    let wide = matrix.to_dtype(DType::F64)?;
    let own = spectrum(&wide, entries.norm(), eps)?;
    let norm = entries.norm();
    let displaced = |(operators, values): (&'static str, Vec<f64>)| -> Result<Displacement> {
        let of = values.iter().map(|value| value * value).sum::<f64>().sqrt();
        let matrix = Tensor::from_vec(values, shape, &Device::Cpu)?;
        // Its elements are differences of rounded ones: the noise is that of the matrix.
        let spectrum = spectrum(&matrix, norm, 2.0 * eps)?;
        let relative_norm = if norm > 0.0 { of / norm } else { 0.0 };
        Ok(Displacement { operators, relative_norm, spectrum })
    };
    let displacements =
        displacements(&entries).into_iter().map(displaced).collect::<Result<Vec<_>>>()?;
    Ok(Analysis { shape, norm, matrix: own, displacements, formats: fits(&wide, shape)? })
}

/// Distance of neighbouring numbers near 1.
fn epsilon(dtype: DType) -> f64 {
    match dtype {
        DType::F64 => f64::EPSILON,
        DType::BF16 => 2f64.powi(-7),
        DType::F16 => 2f64.powi(-10),
        _ => f64::from(f32::EPSILON),
    }
}

fn spectrum(matrix: &Tensor, norm: f64, eps: f64) -> Result<Spectrum> {
    let &[rows, cols] = matrix.dims() else {
        return Err(Error::shape("analyze", "matrix", matrix.shape(), "[rows, cols]"));
    };
    let of = rows.min(cols);
    let found = project_low_rank(matrix, of)?;
    // A column of u has the root of its singular value in it.
    let values = found.u.mul(&found.u)?.sum(0)?.to_vec::<f64>()?;
    let noise = eps * norm * (1.0 / (rows as f64).sqrt() + 1.0 / (cols as f64).sqrt());
    let energy: f64 = values.iter().map(|value| value * value).sum();
    let largest = values.first().copied().unwrap_or_default();
    let energy_rank = |part: f64| {
        let mut sum = 0.0;
        let reached = |value: &f64| {
            sum += value * value;
            sum >= part * energy * (1.0 - 1e-12)
        };
        if energy > 0.0 { values.iter().position(reached).map_or(of, |at| at + 1) } else { 0 }
    };
    let over = |value: f64| if largest > 0.0 { value / largest } else { 0.0 };
    Ok(Spectrum {
        rank: values.iter().filter(|value| **value > noise).count(),
        of,
        stable_rank: if largest > 0.0 { energy / (largest * largest) } else { 0.0 },
        energy_ranks: ENERGIES.map(energy_rank),
        largest,
        decay: (0..=8).map(|eighth| over(values[(of - 1) * eighth / 8])).collect(),
    })
}

/// The displacements by name.
fn displacements(entries: &Entries) -> [(&'static str, Vec<f64>); 3] {
    let (rows, cols) = (entries.rows, entries.cols);
    let at = |row: usize, col: usize| entries.values[row * cols + col].re;
    let each = |f: &dyn Fn(usize, usize) -> f64| -> Vec<f64> {
        (0..rows * cols).map(|index| f(index / cols, index % cols)).collect()
    };
    let toeplitz = each(&|i, j| match i > 0 && j > 0 {
        true => at(i, j) - at(i - 1, j - 1),
        false => at(i, j),
    });
    let hankel = each(&|i, j| match i > 0 && j + 1 < cols {
        true => at(i, j) - at(i - 1, j + 1),
        false => at(i, j),
    });
    let cyclic = each(&|i, j| {
        let above = at((i + rows - 1) % rows, j);
        let beside = if j + 1 < cols { at(i, j + 1) } else { -at(i, 0) };
        above - beside
    });
    [("M - Z M Z^T", toeplitz), ("M - Z M Z", hankel), ("Z1 M - M Z-1", cyclic)]
}

/// The largest format of each family within each share.
fn fits(matrix: &Tensor, shape: [usize; 2]) -> Result<Vec<Fit>> {
    let [rows, cols] = shape;
    let mut wanted = Vec::new();
    for share in SHARES {
        let budget = share * (rows * cols) as f64;
        let rank = ((budget / (rows + cols) as f64) as usize).min(rows.min(cols));
        let within = |format: &Format| format.elem_count(rows, cols) as f64 <= budget;
        let blocks = (2..=rows.min(cols)).map(Format::Monarch).find(within);
        let pixelfly = PixelflySizes::within(shape, share).map(Format::Pixelfly);
        let low_rank = (rank > 0).then_some(Format::LowRank(rank));
        let all = [low_rank, blocks, pixelfly].into_iter().flatten();
        wanted.extend(all.map(|format| (share, format)));
    }
    let butterfly = Format::Butterfly.elem_count(rows, cols) as f64 / (rows * cols) as f64;
    if butterfly < 1.0 {
        wanted.push((butterfly, Format::Butterfly));
    }
    let formats: Vec<Format> = wanted.iter().map(|one| one.1).collect();
    let found = errors(matrix, &formats)?;
    let fit = |((share, format), relative_error): ((f64, Format), f64)| Fit {
        share,
        format: String::from(format),
        parameters: format.elem_count(rows, cols),
        relative_error,
    };
    Ok(wanted.into_iter().zip(found).map(fit).collect())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::structured::factor::target;
    use danaus_testkit::randn;

    #[test]
    fn ranks_and_displacement_ranks_are_found() {
        // f32 elements: the noise is that of rounding.
        let rounded = |t: &Tensor| t.to_dtype(DType::F32).unwrap();
        let low = randn(1, &[48, 5], DType::F64).matmul(&randn(2, &[5, 64], DType::F64)).unwrap();
        let found = analyze(&rounded(&low)).unwrap();
        assert_eq!((found.matrix.rank, found.matrix.of), (5, 48));
        assert!(found.matrix.decay[0] == 1.0 && found.matrix.decay[8] < 1e-6);
        let fits: Vec<&Fit> =
            found.formats.iter().filter(|fit| fit.relative_error < 1e-6).collect();
        assert!(fits.iter().any(|fit| fit.format.starts_with("lowrank")), "{:?}", found.formats);
        // Toeplitz matrices have displacement rank 2, Hankel matrices too, in their own direction.
        let toeplitz = target("toeplitz", 40, 1).unwrap();
        let found = analyze(&rounded(&toeplitz)).unwrap();
        let ranks = |found: &Analysis| {
            found.displacements.iter().map(|one| one.spectrum.rank).collect::<Vec<_>>()
        };
        assert_eq!(found.matrix.rank, 40);
        let [stein, hankel, cyclic] = ranks(&found)[..] else { panic!("three displacements") };
        assert!(stein == 2 && hankel > 20 && cyclic <= 2, "{stein} {hankel} {cyclic}");
        let flipped = toeplitz.flip(0).unwrap().contiguous().unwrap();
        let found = analyze(&rounded(&flipped)).unwrap();
        let [stein, hankel, _] = ranks(&found)[..] else { panic!("three displacements") };
        assert!(stein > 20 && hankel == 2, "{stein} {hankel}");
    }

    #[test]
    fn a_matrix_without_structure_says_so() {
        let found = analyze(&randn(3, &[64, 64], DType::F64)).unwrap();
        assert_eq!(found.matrix.rank, 64);
        assert!(found.displacements.iter().all(|one| one.spectrum.rank > 60));
        assert!(found.formats.iter().all(|fit| fit.relative_error > 0.3), "{:?}", found.formats);
        // No format is above its share.
        for fit in &found.formats {
            assert!(fit.parameters as f64 <= fit.share * 64.0 * 64.0 + 1e-9, "{fit:?}");
        }
        let [half, most, all] = found.matrix.energy_ranks;
        assert!(half < most && most < all && all <= 64);
        assert!((found.matrix.stable_rank - 16.0).abs() < 8.0, "{}", found.matrix.stable_rank);
    }

    #[test]
    fn zeros_and_vectors_are_no_trouble() {
        let zeros = Tensor::zeros([3, 4], DType::F32, &Device::Cpu).unwrap();
        let found = analyze(&zeros).unwrap();
        assert_eq!((found.matrix.rank, found.norm, found.matrix.energy_ranks[0]), (0, 0.0, 0));
        assert_eq!(analyze(&randn(1, &[1, 7], DType::F64)).unwrap().matrix.rank, 1);
        assert!(analyze(&randn(1, &[7], DType::F64)).is_err());
    }
}
