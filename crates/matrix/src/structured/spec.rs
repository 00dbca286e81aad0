//! Structured matrices as operators: `danaus op run ldr`.

use super::ldr::{LdrClass, ldr};
use danaus_tensor::registry::{Arg, Args, Attr, Kind, OpSpec};
use danaus_tensor::{Result, Tensor};

fn call(args: &Args) -> Result<Vec<Option<Tensor>>> {
    let class = LdrClass::from_name(args.text("class").unwrap_or("subdiagonal"))?;
    let by = format!("class {}", class.name());
    let operators = class.operators().iter().map(|&(name, ..)| args.needed(name, &by));
    let operators = operators.collect::<Result<Vec<_>>>()?;
    let map = ldr(class, &operators, args.input("G")?, args.input("H")?)?;
    Ok(vec![Some(map.apply(args.input("x")?)?)])
}

/// Operators of this folder.
pub const SPECS: &[OpSpec] = &[OpSpec {
    name: "ldr",
    summary: "sum over i of K(A, G_i) K(B, H_i)^T x for Krylov matrices of sparse operators",
    inputs: &[
        Arg::float("x", "... n"),
        Arg::float("G", "rank n"),
        Arg::float("H", "rank n"),
        Arg::float("subd_a", "n-1").optional(),
        Arg::float("diag_a", "n").optional(),
        Arg::float("supd_a", "n-1").optional(),
        Arg::float("subd_b", "n-1").optional(),
        Arg::float("diag_b", "n").optional(),
        Arg::float("supd_b", "n-1").optional(),
        Arg::float("corners", "2").optional(),
    ],
    attributes: &[Attr::new(
        "class",
        Kind::Text,
        "subdiagonal",
        "subdiagonal, subdiagonal-corner, tridiagonal, tridiagonal-corner, toeplitz, hankel, vandermonde",
    )],
    outputs: &["y"],
    call,
}];
