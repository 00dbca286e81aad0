//! Token embedding on a GPU: rows picked by index, and their cotangents added back in the order of
//! their positions. Ids are checked by the kernels and reported by the next call that waits.

use danaus_tensor::ops::index_select_into;
use danaus_tensor::{Result, Tensor, no_grad};

/// `y = weight[ids]`, rows in the order of `ids`.
pub(super) fn forward(weight: &Tensor, ids: &Tensor, y: &mut Tensor) -> Result<()> {
    index_select_into(weight, 0, ids, y)
}

/// The gradient of `weight`; rows of `padding` get none.
pub(super) fn backward(
    weight: &Tensor,
    ids: &Tensor,
    dy: &Tensor,
    padding: Option<usize>,
) -> Result<Tensor> {
    let (count, dim, device) = (ids.elem_count(), weight.dims()[1], weight.device());
    let list = ids.detach().reshape([count])?;
    let mut dy = dy.detach().reshape([count, dim])?;
    no_grad(|| {
        if let Some(padding) = padding {
            let padding = Tensor::scalar(padding as i64, &device)?.to_dtype(list.dtype())?;
            let skip = list.eq(&padding)?.reshape([count, 1])?;
            dy = dy.masked_fill(&skip, 0.0)?;
        }
        let zeros = Tensor::zeros(weight.shape(), weight.dtype(), &device)?;
        zeros.index_add(0, &list, &dy)
    })
}
