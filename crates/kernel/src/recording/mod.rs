//! What work that is recorded once and replayed needs of the code it runs through.
//!
//! A replay repeats launches with the arguments that they had. So everything that the host would compute
//! anew must either never change, or lie in device memory that is rewritten before each replay:
//!
//! * [`constant`]: tensors made of parameters alone. A rehearsal makes them, the recording uses those of
//!   the rehearsal, and they are not part of what is replayed.
//! * [`hold`]: tensors that others own and may replace, such as tables of angles; what is recorded reads
//!   their addresses, so it keeps them alive. [`crate::lists::list`] does so by itself.
//! * [`overwrite`]: results that the next replay begins from go back to where it reads them.
//!
//! Scopes belong to a thread, as recordings do.

use danaus_runtime::cuda::{Argument, Defines, Header, Launch, Source, Variant};
use danaus_tensor::cuda::SCALAR;
use danaus_tensor::{Error, Result, Tensor};
use std::cell::RefCell;

const HEADERS: &[Header] = &[SCALAR];
static SOURCE: Source = Source::new("overwrite.cuh", include_str!("overwrite.cuh"), HEADERS);

/// Copies of a launch: `Places` of the kernel.
const PLACES: usize = 96;
/// Most blocks of a copy.
const BLOCKS: usize = 64;

/// What a rehearsal made: tensors of parameters alone, in the order in which they were asked for.
#[derive(Default)]
pub struct Constants(Vec<Tensor>);

/// Tensors that recorded work reads; it may be replayed as long as this lives.
pub struct Held {
    _tensors: Vec<Tensor>,
}

enum Scope {
    Rehearsal(Vec<Tensor>),
    Recording { constants: std::vec::IntoIter<Tensor>, held: Vec<Tensor> },
}

thread_local! {
    static SCOPE: RefCell<Option<Scope>> = const { RefCell::new(None) };
}

/// Runs work that will be recorded next, and keeps the constants that it makes.
pub fn rehearse<T>(work: impl FnOnce() -> T) -> (T, Constants) {
    let (made, scope) = within(Scope::Rehearsal(Vec::new()), work);
    match scope {
        Some(Scope::Rehearsal(constants)) => (made, Constants(constants)),
        _ => (made, Constants::default()),
    }
}

/// Runs work that is being recorded.
pub fn record<T>(constants: &Constants, work: impl FnOnce() -> T) -> (T, Held) {
    let scope =
        Scope::Recording { constants: constants.0.clone().into_iter(), held: constants.0.clone() };
    let (made, scope) = within(scope, work);
    match scope {
        Some(Scope::Recording { held, .. }) => (made, Held { _tensors: held }),
        _ => (made, Held { _tensors: Vec::new() }),
    }
}

/// Ends the scope also when the work panics.
fn within<T>(scope: Scope, work: impl FnOnce() -> T) -> (T, Option<Scope>) {
    struct End(Option<Scope>);
    impl Drop for End {
        fn drop(&mut self) {
            SCOPE.set(self.0.take());
        }
    }
    let _end = End(SCOPE.replace(Some(scope)));
    let made = work();
    (made, SCOPE.take())
}

/// A tensor that follows from parameters alone: made at once, except while work is recorded.
///
/// # Errors
/// Those of `make`, and when a recording asks for more of them than its rehearsal.
pub fn constant(make: impl FnOnce() -> Result<Tensor>) -> Result<Tensor> {
    let known = SCOPE.with_borrow_mut(|scope| match scope {
        Some(Scope::Recording { constants, .. }) => Some(constants.next()),
        _ => None,
    });
    match known {
        Some(Some(tensor)) => Ok(tensor),
        Some(None) => {
            let remedy = "rehearse the same work before it is recorded";
            Err(Error::unsupported("recording", "a constant that was not rehearsed", remedy))
        }
        None => {
            let made = make()?;
            SCOPE.with_borrow_mut(|scope| {
                if let Some(Scope::Rehearsal(constants)) = scope {
                    constants.push(made.clone());
                }
            });
            Ok(made)
        }
    }
}

/// Keeps a tensor alive as long as what is being recorded, if anything is.
pub fn hold(tensor: &Tensor) {
    SCOPE.with_borrow_mut(|scope| {
        if let Some(Scope::Recording { held, .. }) = scope {
            held.push(tensor.clone());
        }
    });
}

/// Copies tensors over others of the same shape and dtype on a GPU, `(from, to)`, in one launch for many.
/// The targets may be shared: whoever holds them sees the new values.
///
/// # Errors
/// When a pair differs in shape or dtype, or is not on a GPU or not contiguous.
pub fn overwrite(pairs: &[(&Tensor, &Tensor)]) -> Result<()> {
    for (from, to) in pairs {
        let alike = from.dims() == to.dims() && from.dtype() == to.dtype();
        if !alike || !from.is_contiguous() || !to.is_contiguous() {
            let expected = format!("{} {}, contiguous", to.shape(), to.dtype());
            return Err(Error::shape("overwrite", "from", from.shape(), expected));
        }
    }
    for part in pairs.chunks(PLACES) {
        let (mut from, mut to) = ([0u64; PLACES], [0u64; PLACES]);
        let mut sizes = [0i64; PLACES];
        for (index, (source, target)) in part.iter().enumerate() {
            from[index] = source.device_address()?;
            to[index] = target.device_address()?;
            sizes[index] = source.bytes() as i64;
        }
        let most = sizes.iter().copied().max().unwrap_or(0) as usize;
        if most == 0 {
            continue;
        }
        let gpu = part[0].0.gpu()?;
        let kernel = gpu.kernel(&SOURCE, "overwrite", &Defines::new())?;
        let blocks = most.div_ceil(16 * 256).clamp(1, BLOCKS) as u32;
        let launch = Launch::new([blocks, part.len() as u32, 1], [256, 1, 1]);
        let arguments: [&dyn Argument; 3] = [&from, &to, &sizes];
        // SAFETY: every pair is two live contiguous tensors of one size, and the stream orders this
        // after whatever still reads the targets.
        unsafe { kernel.launch(&launch, &arguments)? };
    }
    Ok(())
}

/// The kernels that are shipped.
pub(crate) fn variants() -> Vec<Variant> {
    vec![Variant::new(SOURCE.clone(), Defines::new())]
}

#[cfg(test)]
mod tests {
    use super::*;
    use danaus_tensor::Device;

    fn number(value: f64) -> Result<Tensor> {
        constant(|| Tensor::scalar(value, &Device::Cpu))
    }

    #[test]
    fn recordings_use_the_constants_of_the_rehearsal() {
        let both = |a: f64, b: f64| -> Result<[f64; 2]> {
            Ok([number(a)?.to_scalar()?, number(b)?.to_scalar()?])
        };
        let (made, constants) = rehearse(|| both(1.0, 2.0));
        assert_eq!(made.unwrap(), [1.0, 2.0]);
        let (made, _held) = record(&constants, || both(3.0, 4.0));
        assert_eq!(made.unwrap(), [1.0, 2.0]);
        assert_eq!(both(5.0, 6.0).unwrap(), [5.0, 6.0]);
        let (made, _held) = record(&constants, || -> Result<[f64; 2]> {
            both(0.0, 0.0)?;
            both(0.0, 0.0)
        });
        assert!(made.unwrap_err().to_string().contains("rehearse"));
    }
}
