//! The tensor handle: constructors, accessors and typed access for kernels.

use crate::storage::Storage;
use crate::tape::Lineage;
use crate::{DType, Device, Element, Error, Layout, Result, Shape};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

/// Identity of a tensor on the tape; unique in a process.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct TensorId(u64);

impl TensorId {
    fn next() -> Self {
        static COUNTER: AtomicU64 = AtomicU64::new(0);
        Self(COUNTER.fetch_add(1, Ordering::Relaxed))
    }
}

/// An n-dimensional array. Cloning is cheap and shares the storage; elements never change once a
/// tensor is built, except through optimisers and state objects, which own theirs alone.
#[derive(Clone)]
pub struct Tensor(Arc<Inner>);

struct Inner {
    id: TensorId,
    storage: Arc<Storage>,
    layout: Layout,
    dtype: DType,
    lineage: Lineage,
}

/// Typed, strided read access to a tensor on the processor, for kernels.
#[derive(Clone, Copy)]
pub struct View<'a, T> {
    /// First element.
    pub ptr: *const T,
    /// Dimensions.
    pub shape: &'a [usize],
    /// Strides in elements.
    pub strides: &'a [isize],
}

// SAFETY: a view is a shared reference to elements that nobody changes while it lives.
unsafe impl<T: Sync> Send for View<'_, T> {}
// SAFETY: as above.
unsafe impl<T: Sync> Sync for View<'_, T> {}

impl Tensor {
    pub(crate) fn from_parts(
        storage: Arc<Storage>,
        layout: Layout,
        dtype: DType,
        lineage: Lineage,
    ) -> Self {
        Self(Arc::new(Inner { id: TensorId::next(), storage, layout, dtype, lineage }))
    }

    fn from_storage(storage: Storage, shape: Shape, dtype: DType) -> Self {
        Self::from_parts(Arc::new(storage), Layout::contiguous(shape), dtype, Lineage::None)
    }

    /// A tensor over storage that holds exactly `shape` elements of `dtype`, row-major.
    ///
    /// # Errors
    /// When the sizes disagree.
    pub fn from_raw_storage(
        storage: Storage,
        shape: impl Into<Shape>,
        dtype: DType,
    ) -> Result<Self> {
        let shape = shape.into();
        if bytes_of(&shape, dtype)? != storage.len() {
            return Err(Error::internal(format!(
                "storage of {} bytes for a tensor {shape} of {dtype}",
                storage.len()
            )));
        }
        Ok(Self::from_storage(storage, shape, dtype))
    }

    /// Elements with unspecified values, for operators that write all of them.
    ///
    /// # Errors
    /// When there is no memory for it.
    pub fn empty(shape: impl Into<Shape>, dtype: DType, device: &Device) -> Result<Self> {
        let shape = shape.into();
        let bytes = bytes_of(&shape, dtype)?;
        // Stale bytes are valid values of every dtype except bool.
        let storage = match dtype {
            DType::Bool => Storage::zeroed(bytes, device)?,
            _ => Storage::uninit(bytes, device)?,
        };
        Ok(Self::from_storage(storage, shape, dtype))
    }

    /// All elements zero (false).
    ///
    /// # Errors
    /// When there is no memory for it.
    pub fn zeros(shape: impl Into<Shape>, dtype: DType, device: &Device) -> Result<Self> {
        let shape = shape.into();
        let storage = Storage::zeroed(bytes_of(&shape, dtype)?, device)?;
        Ok(Self::from_storage(storage, shape, dtype))
    }

    /// All elements `value`.
    ///
    /// # Errors
    /// When there is no memory for it.
    pub fn full<T: Element>(value: T, shape: impl Into<Shape>, device: &Device) -> Result<Self> {
        let mut tensor = Self::empty(shape, T::DTYPE, device)?;
        if device.is_cuda() {
            crate::ops::fill_cuda(&mut tensor, value)?;
        } else {
            tensor.as_slice_mut::<T>()?.fill(value);
        }
        Ok(tensor)
    }

    /// A scalar.
    ///
    /// # Errors
    /// When there is no memory for it.
    pub fn scalar<T: Element>(value: T, device: &Device) -> Result<Self> {
        Self::full(value, [], device)
    }

    /// Takes the elements of a list in row-major order.
    ///
    /// # Errors
    /// When the list's length is not the shape's number of elements, or memory is missing.
    pub fn from_vec<T: Element>(
        elements: Vec<T>,
        shape: impl Into<Shape>,
        device: &Device,
    ) -> Result<Self> {
        Self::from_slice(&elements, shape, device)
    }

    /// Copies the elements of a slice in row-major order.
    ///
    /// # Errors
    /// When the slice's length is not the shape's number of elements, or memory is missing.
    pub fn from_slice<T: Element>(
        elements: &[T],
        shape: impl Into<Shape>,
        device: &Device,
    ) -> Result<Self> {
        let shape = shape.into();
        if shape.checked_elem_count() != Some(elements.len()) {
            let expected = format!("{} elements", elements.len());
            return Err(Error::shape("from_slice", "shape", shape, expected));
        }
        if device.is_cuda() {
            let storage = crate::cuda::upload(elements, device)?;
            return Ok(Self::from_storage(storage, shape, T::DTYPE));
        }
        let mut tensor = Self::empty(shape, T::DTYPE, device)?;
        tensor.as_slice_mut::<T>()?.copy_from_slice(elements);
        Ok(tensor)
    }

    /// The same bytes as another dtype and shape; for readers of files.
    pub(crate) fn reinterpret(&self, shape: impl Into<Shape>, dtype: DType) -> Result<Self> {
        let shape = shape.into();
        if !self.is_contiguous() || bytes_of(&shape, dtype)? != self.bytes() || dtype == DType::Bool
        {
            return Err(Error::internal(format!("{self:?} reinterpreted as {dtype} {shape}")));
        }
        let layout = Layout::contiguous(shape);
        Ok(Self::from_parts(self.0.storage.clone(), layout, dtype, Lineage::None))
    }

    /// Identity on the tape.
    pub fn id(&self) -> TensorId {
        self.0.id
    }

    /// Shape.
    pub fn shape(&self) -> &Shape {
        self.0.layout.shape()
    }

    /// Dimensions as a slice.
    pub fn dims(&self) -> &[usize] {
        self.shape().dims()
    }

    /// Number of dimensions.
    pub fn rank(&self) -> usize {
        self.dims().len()
    }

    /// Number of elements.
    pub fn elem_count(&self) -> usize {
        self.shape().elem_count()
    }

    /// Strides in elements.
    pub fn strides(&self) -> &[isize] {
        self.0.layout.strides()
    }

    /// Shape, strides and offset.
    pub fn layout(&self) -> &Layout {
        &self.0.layout
    }

    /// Element type.
    pub fn dtype(&self) -> DType {
        self.0.dtype
    }

    /// Where the elements are.
    pub fn device(&self) -> Device {
        self.0.storage.device()
    }

    /// Bytes that the elements take.
    pub fn bytes(&self) -> usize {
        self.elem_count() * self.dtype().size()
    }

    /// Whether the elements lie row-major without gaps.
    pub fn is_contiguous(&self) -> bool {
        self.0.layout.is_contiguous()
    }

    pub(crate) fn lineage(&self) -> &Lineage {
        &self.0.lineage
    }

    /// The same elements under another layout and lineage.
    pub(crate) fn with_layout(&self, layout: Layout, lineage: Lineage) -> Self {
        Self::from_parts(self.0.storage.clone(), layout, self.0.dtype, lineage)
    }

    pub(crate) fn with_lineage(&self, lineage: Lineage) -> Self {
        self.with_layout(self.0.layout.clone(), lineage)
    }

    /// A leaf of the tape with the same elements: gradients are reported for it.
    pub fn tracked(&self) -> Self {
        self.with_lineage(Lineage::Leaf)
    }

    /// The same elements without history.
    pub fn detach(&self) -> Self {
        match self.0.lineage {
            Lineage::None => self.clone(),
            _ => self.with_lineage(Lineage::None),
        }
    }

    /// Whether gradients flow to or through this tensor.
    pub fn is_tracked(&self) -> bool {
        !matches!(self.0.lineage, Lineage::None)
    }

    pub(crate) fn storage(&self) -> &Storage {
        &self.0.storage
    }

    /// The storage, if nobody else holds it and this tensor covers all of it.
    pub(crate) fn storage_mut(&mut self) -> Option<&mut Storage> {
        let whole = self.bytes() == self.0.storage.len() && self.is_contiguous();
        let inner = Arc::get_mut(&mut self.0).filter(|_| whole)?;
        Arc::get_mut(&mut inner.storage)
    }

    fn check_type<T: Element>(&self, op: &'static str) -> Result<()> {
        if self.dtype() == T::DTYPE {
            Ok(())
        } else {
            Err(Error::dtype(op, "tensor", self.dtype(), T::DTYPE.name()))
        }
    }

    /// The elements of a contiguous tensor on the processor.
    ///
    /// # Errors
    /// When the dtype is another one or the tensor is not contiguous.
    pub fn as_slice<T: Element>(&self) -> Result<&[T]> {
        self.check_type::<T>("as_slice")?;
        if !self.is_contiguous() {
            let what = format!("a tensor {} with strides {:?}", self.shape(), self.strides());
            return Err(Error::unsupported("as_slice", what, "call contiguous() first"));
        }
        let view = self.view::<T>()?;
        // SAFETY: the layout is contiguous and lies inside the storage (checked when it was made).
        Ok(unsafe { std::slice::from_raw_parts(view.ptr, self.elem_count()) })
    }

    /// The elements of a contiguous tensor as bytes, in the machine's order.
    ///
    /// # Errors
    /// When the tensor is not contiguous.
    pub fn as_bytes(&self) -> Result<&[u8]> {
        crate::match_dtype!(self.dtype(), T => {
            let elements = self.as_slice::<T>()?;
            // SAFETY: every element type is plain data without padding.
            Ok(unsafe {
                std::slice::from_raw_parts(elements.as_ptr().cast(), size_of_val(elements))
            })
        })
    }

    /// The elements of a fresh tensor that nobody shares, for writing.
    ///
    /// # Errors
    /// When the dtype is another one, or the tensor is shared, a view or a mapped file.
    pub fn as_slice_mut<T: Element>(&mut self) -> Result<&mut [T]> {
        self.check_type::<T>("as_slice_mut")?;
        let count = self.elem_count();
        if self.device().is_cuda() {
            return Err(Error::NotOnHost { op: "as_slice_mut", device: self.device() });
        }
        let pointer = self.storage_mut().and_then(Storage::write_ptr);
        let Some(pointer) = pointer else {
            return Err(Error::internal("as_slice_mut on a tensor that is shared or a view"));
        };
        // SAFETY: the storage is ours alone, holds `count` elements and is aligned to 64 bytes.
        Ok(unsafe { std::slice::from_raw_parts_mut(pointer.cast::<T>(), count) })
    }

    /// Whether the elements may be changed in place: nobody else holds them, and they are no part of
    /// a larger tensor or a mapped file.
    pub fn is_unique(&mut self) -> bool {
        let storage = self.storage_mut();
        storage.is_some_and(|storage| !matches!(storage, Storage::Mapped(_)))
    }

    /// Strided read access for kernels.
    ///
    /// # Errors
    /// When the dtype is another one.
    pub fn view<T: Element>(&self) -> Result<View<'_, T>> {
        self.check_type::<T>("view")?;
        let Some(start) = self.0.storage.read_ptr() else {
            return Err(Error::NotOnHost { op: "view", device: self.device() });
        };
        let start = start.cast::<T>();
        // SAFETY: the offset lies inside the storage (or is 0 for an empty one).
        let ptr = unsafe { start.add(self.0.layout.offset()) };
        Ok(View { ptr, shape: self.dims(), strides: self.strides() })
    }

    /// The elements in row-major order; from a GPU they are copied.
    ///
    /// # Errors
    /// When the dtype is another one.
    pub fn to_vec<T: Element>(&self) -> Result<Vec<T>> {
        if self.device().is_cuda() {
            self.check_type::<T>("to_vec")?;
            return self.to_device(&Device::Cpu)?.to_vec();
        }
        if self.is_contiguous() {
            return Ok(self.as_slice::<T>()?.to_vec());
        }
        let view = self.view::<T>()?;
        let mut elements = Vec::with_capacity(self.elem_count());
        let base = self.0.layout.offset() as isize;
        self.0.layout.for_each_row(|start, count, stride| {
            for index in 0..count as isize {
                let position = start as isize - base + index * stride;
                // SAFETY: the layout only visits positions inside the storage.
                elements.push(unsafe { *view.ptr.offset(position) });
            }
        });
        Ok(elements)
    }

    /// The only element, as f64.
    ///
    /// # Errors
    /// When there is not exactly one element of a real dtype.
    pub fn to_scalar(&self) -> Result<f64> {
        if self.elem_count() != 1 {
            return Err(Error::shape("to_scalar", "tensor", self.shape(), "exactly one element"));
        }
        let one = self.detach().to_device(&Device::Cpu)?.to_dtype(DType::F64)?;
        Ok(one.to_vec::<f64>()?[0])
    }
}

/// Bytes of a tensor, refused when they exceed the address space.
pub(crate) fn bytes_of(shape: &Shape, dtype: DType) -> Result<usize> {
    let count = shape.checked_elem_count().and_then(|count| count.checked_mul(dtype.size()));
    count
        .filter(|&bytes| bytes <= isize::MAX as usize / 2)
        .ok_or_else(|| Error::shape("tensor", "shape", shape, "a size that fits the address space"))
}

impl std::fmt::Debug for Tensor {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "Tensor({} {} on {})", self.dtype(), self.shape(), self.device())
    }
}
