//! Reductions on a GPU. The cut into parts depends on the shape alone, parts are joined in order, and
//! there are no atomics, so that results have the same bits on every run.

use super::Kind;
use super::fold::Extent;
use crate::cuda::{SCALAR, device_type};
use crate::{DType, Error, Result, Tensor};
use danaus_runtime::cuda::{Argument, Defines, DeviceBuffer, Header, Launch, Source, Variant};

const HEADERS: &[Header] = &[SCALAR];
static SOURCE: Source = Source::new("reduce.cuh", include_str!("reduce.cuh"), HEADERS);

/// Rows up to this length are folded by one warp.
const SHORT: usize = 256;
/// Blocks below which a long fold is cut into parts.
const FEW_BLOCKS: usize = 512;
/// Fewest elements along the folded dimension that are worth a part.
const PART: usize = 1024;
/// Threads of a block.
const THREADS: u32 = 256;
/// Most parts: the grid's second extent is limited.
const MAX_PARTS: usize = 1024;

/// Elements a part, and parts, of `count` elements for `blocks` blocks.
fn cut(count: usize, blocks: usize) -> (usize, usize) {
    let wanted = FEW_BLOCKS.div_ceil(blocks.max(1)).min(count.div_ceil(PART)).min(MAX_PARTS);
    let each = count.div_ceil(wanted.max(1)).max(1);
    (each, count.div_ceil(each).max(1))
}

/// Neighbouring columns that a thread reads at once: up to 8 bytes, where rows are divisible by them.
fn pack(inner: usize, size: usize, address: u64) -> usize {
    let fits = |pack: &usize| {
        pack * size <= 8
            && inner.is_multiple_of(*pack)
            && address.is_multiple_of((pack * size) as u64)
    };
    // One column has rows, not columns.
    if inner == 1 { 1 } else { [4, 2].into_iter().find(fits).unwrap_or(1) }
}

/// Constants of the fold of a dtype.
fn defines(kind: Kind, dtype: DType, arg: bool) -> Result<Defines> {
    let op = kind.name();
    let float = dtype.is_float();
    let (name, fold) = (device_type(op, dtype)?, if float { "double" } else { "i64" });
    let number = match kind {
        Kind::Sum => 0,
        Kind::Product => 1,
        Kind::Max => 2,
        Kind::Min => 3,
        Kind::Any => 4,
        Kind::All => 5,
    };
    let (low, high) = match float {
        true => (
            "(-__longlong_as_double(0x7ff0000000000000LL))",
            "__longlong_as_double(0x7ff0000000000000LL)",
        ),
        false => ("(-0x7fffffffffffffffLL-1)", "0x7fffffffffffffffLL"),
    };
    Ok(Defines::new()
        .set("ELEMENT", name)
        .set("WIDE", fold)
        .set("RESULT", if arg { "i64" } else { name })
        .set("FOLD", number)
        .set("PLACE", u8::from(arg))
        .set("LOWEST", low)
        .set("HIGHEST", high))
}

/// Folds the contiguous tensor `x` to `out`; with `arg`, to the position of the extreme.
pub(super) fn fold(
    kind: Kind,
    extent: Extent,
    x: &Tensor,
    out: &mut Tensor,
    arg: bool,
) -> Result<()> {
    let Extent { outer, count, inner } = extent;
    let results = outer * inner;
    if results == 0 {
        return Ok(());
    }
    let defines = defines(kind, x.dtype(), arg)?;
    let gpu = x.gpu()?.clone();
    let (from, to) = (x.device_address()?, out.device_address_mut()?);
    let sides = [outer, count, inner].map(|side| side as i64);
    if inner == 1 && count <= SHORT {
        let launch = Launch::linear(grid(outer.div_ceil(8))?, THREADS);
        let arguments: [&dyn Argument; 4] = [&from, &to, &sides[0], &sides[1]];
        let kernel = gpu.kernel(&SOURCE, "short_rows", &defines.set("PACK", 1))?;
        // SAFETY: `x` is contiguous with these sides, `out` is fresh with `outer` elements.
        return Ok(unsafe { kernel.launch(&launch, &arguments)? });
    }
    let pack = pack(inner, x.dtype().size(), from);
    let defines = defines.set("PACK", pack);
    let blocks = if inner == 1 { outer } else { outer * inner.div_ceil(32 * pack) };
    let (per_part, parts) = cut(count, blocks);
    let state = if arg { 16 } else { 8 };
    let states = DeviceBuffer::uninit(&gpu, if parts > 1 { parts * results * state } else { 0 })?;
    let (per_part, part) = (per_part as i64, i32::from(parts > 1));
    let mut launch = Launch::linear(grid(blocks)?, THREADS);
    launch.grid[1] = parts as u32;
    let rows: [&dyn Argument; 7] = [&from, &to, &states, &sides[0], &sides[1], &per_part, &part];
    let columns: [&dyn Argument; 8] =
        [&from, &to, &states, &sides[0], &sides[1], &sides[2], &per_part, &part];
    // SAFETY: as above; the states have one place for each part and result.
    unsafe {
        if inner == 1 {
            gpu.kernel(&SOURCE, "rows", &defines)?.launch(&launch, &rows)?;
        } else {
            gpu.kernel(&SOURCE, "columns", &defines)?.launch(&launch, &columns)?;
        }
        if parts > 1 {
            let launch = Launch::linear(grid(results.div_ceil(THREADS as usize))?, THREADS);
            let (results, parts) = (results as i64, parts as i64);
            let arguments: [&dyn Argument; 4] = [&states, &to, &results, &parts];
            gpu.kernel(&SOURCE, "join_parts", &defines)?.launch(&launch, &arguments)?;
        }
    }
    Ok(())
}

fn grid(blocks: usize) -> Result<u32> {
    let most = i32::MAX as usize;
    u32::try_from(blocks).ok().filter(|&blocks| blocks as usize <= most).ok_or_else(|| {
        Error::not_on_cuda("reduce", format!("a tensor that needs more than {most} blocks"))
    })
}

/// The kernels that are shipped.
pub(crate) fn variants() -> Vec<Variant> {
    let mut all = Vec::new();
    for dtype in [DType::F32, DType::BF16, DType::F64, DType::I64] {
        for kind in [Kind::Sum, Kind::Max, Kind::Min, Kind::Product] {
            for arg in [false, true] {
                if arg && !matches!(kind, Kind::Max | Kind::Min) {
                    continue;
                }
                if let Ok(defines) = defines(kind, dtype, arg) {
                    let pack = if dtype.size() == 2 { 4 } else { 1 };
                    all.push(Variant::new(SOURCE.clone(), defines.set("PACK", pack)));
                }
            }
        }
    }
    all
}

#[cfg(test)]
mod tests {
    use super::{cut, pack};

    #[test]
    fn columns_are_read_together_where_rows_allow_it() {
        assert_eq!(pack(4096, 2, 256), 4);
        assert_eq!(pack(4098, 2, 256), 2);
        assert_eq!(pack(4096, 4, 256), 2);
        assert_eq!(pack(4096, 8, 256), 1);
        assert_eq!(pack(4096, 2, 258), 1);
        assert_eq!(pack(33, 2, 256), 1);
    }

    #[test]
    fn only_long_folds_with_few_results_are_cut() {
        assert_eq!(cut(1 << 20, 10_000).1, 1);
        assert_eq!(cut(1000, 1).1, 1);
        let (each, parts) = cut(1 << 24, 1);
        assert!(parts == 512 && each * parts >= 1 << 24, "{each} {parts}");
        let (each, parts) = cut(5000, 3);
        assert!(parts == 5 && each * (parts - 1) < 5000 && each * parts >= 5000);
        assert_eq!(cut(0, 1), (1, 1));
    }
}
