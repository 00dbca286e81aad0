//! Matrix products by cuBLASLt, loaded when first used.
//!
//! `C = f(alpha A B + beta C)` on row-major C of `m x n`, with A `m x k` and B `k x n` stored either
//! way, batches by strides, sums in f32 (f64 for f64). The library counts columns first, so it is
//! handed the transposed problem `C' = B' A'`.
//!
//! Traps: the library assumes operands aligned to 256 bytes unless told otherwise, so the alignment
//! of every address is part of the request. Splitting k may add partial sums in the output's type;
//! only schemes that add them in the type of the computation are allowed, so that bf16 results do not
//! lose digits. On one stream the library gives the same bits on every run.

use super::gpu::lock;
use super::{DeviceBuffer, Error, Gpu, Result};
use cudarc::cublaslt::{result as lt, sys};
use std::collections::HashMap;
use std::ffi::c_void;
use std::sync::{Arc, Mutex};

/// Scratch memory of the library; what NVIDIA recommends for Hopper.
const WORKSPACE: usize = 32 << 20;

/// Element types of products.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Type {
    /// IEEE double, summed in double.
    F64,
    /// IEEE single.
    F32,
    /// bfloat16, summed in f32.
    Bf16,
    /// IEEE half, summed in f32.
    F16,
}

impl Type {
    fn raw(self) -> sys::cudaDataType {
        match self {
            Self::F64 => sys::cudaDataType::CUDA_R_64F,
            Self::F32 => sys::cudaDataType::CUDA_R_32F,
            Self::Bf16 => sys::cudaDataType::CUDA_R_16BF,
            Self::F16 => sys::cudaDataType::CUDA_R_16F,
        }
    }
}

/// Last step of a product; `bias` is the device address of one value per column, of C's type.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Epilogue {
    /// Nothing.
    #[default]
    None,
    /// `+ bias`.
    Bias(u64),
    /// `max(. + bias, 0)`.
    ReluBias(u64),
    /// `gelu(. + bias)` with the tanh approximation.
    GeluTanhBias(u64),
    /// `max(., 0)`.
    Relu,
    /// `gelu(.)` with the tanh approximation.
    GeluTanh,
}

impl Epilogue {
    fn raw(self) -> (sys::cublasLtEpilogue_t, u64) {
        use sys::cublasLtEpilogue_t as E;
        match self {
            Self::None => (E::CUBLASLT_EPILOGUE_DEFAULT, 0),
            Self::Bias(bias) => (E::CUBLASLT_EPILOGUE_BIAS, bias),
            Self::ReluBias(bias) => (E::CUBLASLT_EPILOGUE_RELU_BIAS, bias),
            Self::GeluTanhBias(bias) => (E::CUBLASLT_EPILOGUE_GELU_BIAS, bias),
            Self::Relu => (E::CUBLASLT_EPILOGUE_RELU, 0),
            Self::GeluTanh => (E::CUBLASLT_EPILOGUE_GELU, 0),
        }
    }
}

/// A matrix in device memory; strides in elements, one of them 1 (or its side is).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Matrix {
    /// Address of the first element.
    pub address: u64,
    /// From row to row.
    pub row_stride: i64,
    /// From column to column.
    pub col_stride: i64,
    /// From matrix to matrix; 0 repeats one.
    pub batch_stride: i64,
}

/// One product, or a batch of them.
#[derive(Clone, Copy, Debug)]
pub struct MatMul {
    /// Rows of A and C.
    pub m: usize,
    /// Columns of B and C.
    pub n: usize,
    /// Columns of A, rows of B.
    pub k: usize,
    /// Number of products.
    pub batch: usize,
    /// Type of A and B.
    pub operands: Type,
    /// Type of C.
    pub output: Type,
    /// Whether f32 operands may be rounded to 10 bits of mantissa for the matrix units.
    pub tf32: bool,
    /// Factor of the product.
    pub alpha: f64,
    /// Factor of the old C.
    pub beta: f64,
    /// A.
    pub a: Matrix,
    /// B.
    pub b: Matrix,
    /// C, row-major.
    pub c: Matrix,
    /// Address of what `beta` multiplies, which lies as C does; `None` is the old C.
    pub added: Option<u64>,
    /// Last step.
    pub epilogue: Epilogue,
}

impl MatMul {
    /// `C = A B` without factors and last step.
    pub fn new(sides: [usize; 3], kind: Type, a: Matrix, b: Matrix, c: Matrix) -> Self {
        let [m, n, k] = sides;
        let (batch, tf32, alpha, beta, epilogue) = (1, false, 1.0, 0.0, Epilogue::None);
        let (operands, output, added) = (kind, kind, None);
        Self { m, n, k, batch, operands, output, tf32, alpha, beta, a, b, c, added, epilogue }
    }
}

impl Matrix {
    /// Whether the library can read a matrix of these sides as it lies.
    pub fn is_plain(&self, rows: usize, columns: usize) -> bool {
        self.leading(rows, columns).is_some()
    }

    /// Whether rows are runs of neighbours, and the distance between runs.
    fn leading(&self, rows: usize, columns: usize) -> Option<(bool, i64)> {
        let (rows, columns) = (rows as i64, columns as i64);
        let by_row =
            (columns == 1 || self.col_stride == 1) && (rows == 1 || self.row_stride >= columns);
        if by_row {
            return Some((true, if rows == 1 { columns.max(1) } else { self.row_stride }));
        }
        let by_column =
            (rows == 1 || self.row_stride == 1) && (columns == 1 || self.col_stride >= rows);
        by_column.then_some((false, if columns == 1 { rows.max(1) } else { self.col_stride }))
    }

    /// Largest power of two up to 256 that divides the address.
    fn alignment(&self) -> u32 {
        1 << self.address.trailing_zeros().min(8)
    }
}

/// Everything that the choice of an algorithm depends on.
#[derive(Clone, Copy, PartialEq, Eq, Hash)]
struct Key {
    sides: [usize; 4],
    types: (Type, Type, bool),
    by_row: [bool; 2],
    leading: [i64; 3],
    batch_strides: [i64; 3],
    alignment: [u32; 4],
    epilogue: u32,
    reads_c: bool,
}

/// The library, opened on one device.
pub(super) struct Handle {
    raw: sys::cublasLtHandle_t,
    workspace: u64,
    chosen: Mutex<HashMap<Key, sys::cublasLtMatmulAlgo_t>>,
}

// SAFETY: the library's handle may be used from any thread.
unsafe impl Send for Handle {}
// SAFETY: as above.
unsafe impl Sync for Handle {}

fn failed(call: &'static str) -> impl Fn(lt::CublasError) -> Error {
    move |error| Error::Blas { call, code: format!("{:?}", error.0) }
}

impl Handle {
    fn open(gpu: &Arc<Gpu>) -> Result<Self> {
        // SAFETY: only tries to load the library.
        if !unsafe { sys::is_culib_present() } {
            return Err(Error::NoLibrary {
                library: "the matrix library cuBLASLt (libcublasLt.so.13)",
                remedy: "install it (`pip install nvidia-cublas`, its folder in LD_LIBRARY_PATH)",
            });
        }
        gpu.bind()?;
        let raw = lt::create_handle().map_err(failed("cublasLtCreate"))?;
        // Kept for good: all products follow one another on one stream.
        let workspace = gpu.allocate(WORKSPACE, gpu.stream.cu_stream())?;
        Ok(Self { raw, workspace, chosen: Mutex::new(HashMap::new()) })
    }
}

/// A descriptor of the library, destroyed when dropped.
struct Descriptor<T: Copy>(T, unsafe fn(T) -> std::result::Result<(), lt::CublasError>);

impl<T: Copy> Drop for Descriptor<T> {
    fn drop(&mut self) {
        // SAFETY: made by the matching create function and destroyed once.
        let _ = unsafe { (self.1)(self.0) };
    }
}

fn layout(
    kind: Type,
    rows: usize,
    columns: usize,
    leading: i64,
    batch: (usize, i64),
) -> Result<Descriptor<sys::cublasLtMatrixLayout_t>> {
    use sys::cublasLtMatrixLayoutAttribute_t as A;
    let made = lt::create_matrix_layout(kind.raw(), rows as u64, columns as u64, leading);
    let layout =
        Descriptor(made.map_err(failed("cublasLtMatrixLayoutCreate"))?, lt::destroy_matrix_layout);
    let (count, stride) = (batch.0 as i32, batch.1);
    let set = |attribute, value: *const c_void, size| {
        // SAFETY: the layout is alive and `value` points to `size` bytes.
        unsafe { lt::set_matrix_layout_attribute(layout.0, attribute, value, size) }
            .map_err(failed("cublasLtMatrixLayoutSetAttribute"))
    };
    set(A::CUBLASLT_MATRIX_LAYOUT_BATCH_COUNT, (&raw const count).cast(), 4)?;
    set(A::CUBLASLT_MATRIX_LAYOUT_STRIDED_BATCH_OFFSET, (&raw const stride).cast(), 8)?;
    Ok(layout)
}

fn describe(
    problem: &MatMul,
    transposed: [bool; 2],
) -> Result<Descriptor<sys::cublasLtMatmulDesc_t>> {
    use sys::cublasComputeType_t as C;
    use sys::cublasLtMatmulDescAttributes_t as A;
    let (compute, scale) = match problem.operands {
        Type::F64 => (C::CUBLAS_COMPUTE_64F, Type::F64),
        Type::F32 if problem.tf32 => (C::CUBLAS_COMPUTE_32F_FAST_TF32, Type::F32),
        _ => (C::CUBLAS_COMPUTE_32F, Type::F32),
    };
    let made = lt::create_matmul_desc(compute, scale.raw());
    let made =
        Descriptor(made.map_err(failed("cublasLtMatmulDescCreate"))?, lt::destroy_matmul_desc);
    let set = |attribute, value: *const c_void, size| {
        // SAFETY: the descriptor is alive and `value` points to `size` bytes.
        unsafe { lt::set_matmul_desc_attribute(made.0, attribute, value, size) }
            .map_err(failed("cublasLtMatmulDescSetAttribute"))
    };
    for (attribute, transposed) in [
        (A::CUBLASLT_MATMUL_DESC_TRANSA, transposed[0]),
        (A::CUBLASLT_MATMUL_DESC_TRANSB, transposed[1]),
    ] {
        // 0 as it lies, 1 transposed: the values of `cublasOperation_t`.
        let operation = i32::from(transposed);
        set(attribute, (&raw const operation).cast(), 4)?;
    }
    let (epilogue, bias) = problem.epilogue.raw();
    set(A::CUBLASLT_MATMUL_DESC_EPILOGUE, (&raw const epilogue).cast(), 4)?;
    if bias != 0 {
        set(A::CUBLASLT_MATMUL_DESC_BIAS_POINTER, (&raw const bias).cast(), 8)?;
    }
    Ok(made)
}

fn preference(key: &Key) -> Result<Descriptor<sys::cublasLtMatmulPreference_t>> {
    use sys::cublasLtMatmulPreferenceAttributes_t as A;
    let made = lt::create_matmul_pref();
    let made = Descriptor(
        made.map_err(failed("cublasLtMatmulPreferenceCreate"))?,
        lt::destroy_matmul_pref,
    );
    let set = |attribute, value: *const c_void, size| {
        // SAFETY: the preference is alive and `value` points to `size` bytes.
        unsafe { lt::set_matmul_pref_attribute(made.0, attribute, value, size) }
            .map_err(failed("cublasLtMatmulPreferenceSetAttribute"))
    };
    let workspace = WORKSPACE as u64;
    set(A::CUBLASLT_MATMUL_PREF_MAX_WORKSPACE_BYTES, (&raw const workspace).cast(), 8)?;
    let scheme = sys::cublasLtReductionScheme_t::CUBLASLT_REDUCTION_SCHEME_COMPUTE_TYPE as u32;
    set(A::CUBLASLT_MATMUL_PREF_REDUCTION_SCHEME_MASK, (&raw const scheme).cast(), 4)?;
    let sides = [
        (A::CUBLASLT_MATMUL_PREF_MIN_ALIGNMENT_A_BYTES, key.alignment[0]),
        (A::CUBLASLT_MATMUL_PREF_MIN_ALIGNMENT_B_BYTES, key.alignment[1]),
        (A::CUBLASLT_MATMUL_PREF_MIN_ALIGNMENT_C_BYTES, key.alignment[2]),
        (A::CUBLASLT_MATMUL_PREF_MIN_ALIGNMENT_D_BYTES, key.alignment[3]),
    ];
    for (attribute, bytes) in sides {
        set(attribute, (&raw const bytes).cast(), 4)?;
    }
    Ok(made)
}

/// The descriptors of a product, in the library's order: its first operand is our B.
struct Descriptors {
    first: Descriptor<sys::cublasLtMatrixLayout_t>,
    second: Descriptor<sys::cublasLtMatrixLayout_t>,
    result: Descriptor<sys::cublasLtMatrixLayout_t>,
    product: Descriptor<sys::cublasLtMatmulDesc_t>,
    key: Key,
}

impl Descriptors {
    fn new(problem: &MatMul) -> Result<Self> {
        let MatMul { m, n, k, batch, a, b, c, operands, output, .. } = *problem;
        let lay = |what: &str, matrix: &Matrix, rows, columns| {
            matrix.leading(rows, columns).ok_or_else(|| {
                let given = format!("strides {} and {}", matrix.row_stride, matrix.col_stride);
                let valid = "rows or columns without gaps between elements";
                Error::argument("matmul", what, given, valid)
            })
        };
        let ((a_by_row, lda), (b_by_row, ldb)) = (lay("a", &a, m, k)?, lay("b", &b, k, n)?);
        let (c_by_row, ldc) = lay("c", &c, m, n)?;
        if !c_by_row || k == 0 {
            let given = format!("k = {k}");
            return Err(Error::argument("matmul", "c or k", given, "a row-major C and k > 0"));
        }
        let added = Matrix { address: problem.added.unwrap_or(c.address), ..c };
        let first = if b_by_row { (n, k) } else { (k, n) };
        let second = if a_by_row { (k, m) } else { (m, k) };
        Ok(Self {
            first: layout(operands, first.0, first.1, ldb, (batch, b.batch_stride))?,
            second: layout(operands, second.0, second.1, lda, (batch, a.batch_stride))?,
            result: layout(output, n, m, ldc, (batch, c.batch_stride))?,
            product: describe(problem, [!b_by_row, !a_by_row])?,
            key: Key {
                sides: [m, n, k, batch],
                types: (operands, output, problem.tf32),
                by_row: [a_by_row, b_by_row],
                leading: [lda, ldb, ldc],
                batch_strides: [a.batch_stride, b.batch_stride, c.batch_stride],
                alignment: [b, a, added, c].map(|matrix| matrix.alignment()),
                epilogue: problem.epilogue.raw().0 as u32,
                reads_c: problem.beta != 0.0,
            },
        })
    }

    /// The algorithm that the library takes for such products, asked for once.
    fn algorithm(&self, handle: &Handle) -> Result<sys::cublasLtMatmulAlgo_t> {
        if let Some(known) = lock(&handle.chosen).get(&self.key) {
            return Ok(*known);
        }
        let preference = preference(&self.key)?;
        // SAFETY: all descriptors are alive.
        let chosen = unsafe {
            lt::get_matmul_algo_heuristic(
                handle.raw,
                self.product.0,
                self.first.0,
                self.second.0,
                self.result.0,
                self.result.0,
                preference.0,
            )
        };
        let chosen = chosen.map_err(failed("cublasLtMatmulAlgoGetHeuristic"))?.algo;
        lock(&handle.chosen).insert(self.key, chosen);
        Ok(chosen)
    }
}

/// Puts a product on the compute stream.
///
/// # Safety
/// The matrices lie in living device memory inside their buffers, and nobody else writes C.
///
/// # Errors
/// When the library is missing, a matrix is not [`Matrix::is_plain`], or the library has no algorithm.
pub unsafe fn matmul(gpu: &Arc<Gpu>, problem: &MatMul) -> Result<()> {
    if problem.m == 0 || problem.n == 0 || problem.batch == 0 {
        return Ok(());
    }
    let handle = gpu.blas.get_or_init(|| Handle::open(gpu)).as_ref().map_err(Clone::clone)?;
    gpu.bind()?;
    let descriptors = Descriptors::new(problem)?;
    let algorithm = descriptors.algorithm(handle)?;
    let wide = [problem.alpha, problem.beta];
    let narrow = wide.map(|factor| factor as f32);
    let factor = |index: usize| match problem.operands {
        Type::F64 => (&raw const wide[index]).cast::<c_void>(),
        _ => (&raw const narrow[index]).cast(),
    };
    let c = problem.c.address as *mut c_void;
    let added = problem.added.unwrap_or(problem.c.address) as *const c_void;
    // SAFETY: the descriptors are alive and describe the matrices; what they point to is promised by
    // the caller. The workspace is used by one product after another on one stream.
    unsafe {
        lt::matmul(
            handle.raw,
            descriptors.product.0,
            factor(0),
            factor(1),
            problem.b.address as *const c_void,
            descriptors.first.0,
            problem.a.address as *const c_void,
            descriptors.second.0,
            added,
            descriptors.result.0,
            c,
            descriptors.result.0,
            &algorithm,
            handle.workspace as *mut c_void,
            WORKSPACE,
            gpu.stream.cu_stream().cast(),
        )
    }
    .map_err(failed("cublasLtMatmul"))
}

/// Row-major strides over a whole buffer, for callers without tensors.
pub fn row_major(buffer: &DeviceBuffer, columns: usize) -> Matrix {
    let (row_stride, col_stride, batch_stride) = (columns as i64, 1, 0);
    Matrix { address: buffer.address(), row_stride, col_stride, batch_stride }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn matrix(row_stride: i64, col_stride: i64) -> Matrix {
        Matrix { address: 0x1040, row_stride, col_stride, batch_stride: 0 }
    }

    #[test]
    fn layouts_are_recognised() {
        assert_eq!(matrix(8, 1).leading(4, 8), Some((true, 8)));
        assert_eq!(matrix(12, 1).leading(4, 8), Some((true, 12)));
        assert_eq!(matrix(1, 4).leading(4, 8), Some((false, 4)));
        assert_eq!(matrix(1, 8).leading(1, 8), Some((false, 8)));
        assert_eq!(matrix(0, 1).leading(1, 8), Some((true, 8)));
        assert_eq!(matrix(3, 1).leading(4, 1), Some((true, 3)));
        assert!(matrix(0, 1).leading(4, 8).is_none());
        assert!(matrix(16, 2).leading(4, 8).is_none());
        assert!(matrix(-8, 1).leading(4, 8).is_none());
        assert_eq!(matrix(8, 1).alignment(), 64);
    }
}
