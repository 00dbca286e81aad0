//! The text of the strided kernel around a formula's statements.

use super::super::expr::Statements;
use super::cuda::{Inner, Plan, THREADS};
use std::fmt::Write as _;

/// What a kernel is written for. Operands are the outputs, then the inputs.
pub(super) struct Kernel<'a> {
    pub plan: &'a Plan,
    /// Type that the formula is computed in.
    pub compute: &'a str,
    /// Element type of each operand.
    pub kinds: &'a [&'a str],
    /// How many of the operands are outputs.
    pub outputs: usize,
    pub statements: &'a Statements,
    /// Whether positions need 64 bits.
    pub wide: bool,
}

impl Kernel<'_> {
    /// The whole source.
    pub fn text(&self) -> String {
        let mut text = String::with_capacity(2048);
        self.declare(&mut text);
        self.place(&mut text);
        self.load(&mut text);
        let body = &self.statements.text;
        let _ = write!(text, "#pragma unroll\nfor (int j = 0; j < V; ++j) {{\n{body}}}\n");
        self.store(&mut text);
        text.push_str("}\n");
        text
    }

    /// Everything that the text depends on.
    pub fn key(&self) -> String {
        let mut key = String::with_capacity(64 + self.statements.text.len());
        let _ = write!(
            key,
            "{} {} {} {} {} {}",
            self.compute,
            self.wide,
            self.plan.pack,
            self.plan.dims.len(),
            self.outputs,
            self.statements.constants.len()
        );
        for (kind, inner) in self.kinds.iter().zip(&self.plan.inner) {
            let _ = write!(key, " {kind}{}", *inner as u8);
        }
        key.push('\n');
        key.push_str(&self.statements.text);
        key
    }

    /// Outputs are `b0, b1, ..`, inputs `a0, a1, ..`.
    fn names(&self) -> impl Iterator<Item = (usize, String)> {
        let outputs = self.outputs;
        (0..self.kinds.len()).map(move |at| {
            (at, if at < outputs { format!("b{at}") } else { format!("a{}", at - outputs) })
        })
    }

    /// Types, the layout argument, the signature.
    fn declare(&self, text: &mut String) {
        let (rank, count) = (self.plan.dims.len(), self.kinds.len());
        let _ = writeln!(
            text,
            "#include \"elementwise.cuh\"\n\
             typedef {} C;\ntypedef {} Index;\nconstexpr int V = {};\n\
             struct Layout {{ i64 count; i64 dims[{rank}]; i64 strides[{count}][{rank}]; \
             i64 constants[{}]; }};\n\
             #define K(i) Constant<C>::of(layout.constants[i])",
            self.compute,
            if self.wide { "u64" } else { "u32" },
            self.plan.pack,
            self.statements.constants.len().max(1),
        );
        let _ = write!(
            text,
            "extern \"C\" __global__ void __launch_bounds__({THREADS}) \
             pointwise(const Layout layout"
        );
        for (at, name) in self.names() {
            let access = if at < self.outputs { "" } else { "const " };
            let _ = write!(text, ", {access}{}* __restrict__ p{name}", self.kinds[at]);
        }
        text.push_str(") {\n");
    }

    /// This thread's first position and every operand's offset there.
    fn place(&self, text: &mut String) {
        let _ = writeln!(
            text,
            "const Index start = ((Index)blockIdx.x * {THREADS} + threadIdx.x) * V;\n\
             if (start >= (Index)layout.count) return;\n\
             const Index left = (Index)layout.count - start;\n\
             const int live = left < V ? (int)left : V;\n\
             Index rest = start;"
        );
        for (_, name) in self.names() {
            let _ = writeln!(text, "i64 o{name} = 0;");
        }
        for axis in (0..self.plan.dims.len()).rev() {
            if axis > 0 {
                let _ = writeln!(
                    text,
                    "{{ const Index whole = rest / (Index)layout.dims[{axis}];\n\
                     const i64 at = rest - whole * (Index)layout.dims[{axis}]; rest = whole;"
                );
            } else {
                text.push_str("{ const i64 at = rest;\n");
            }
            for (at, name) in self.names() {
                let _ = writeln!(text, "o{name} += at * layout.strides[{at}][{axis}];");
            }
            text.push_str("}\n");
        }
    }

    /// An operand's stride along the innermost dimension.
    fn stride(&self, at: usize) -> String {
        format!("layout.strides[{at}][{}]", self.plan.dims.len() - 1)
    }

    fn load(&self, text: &mut String) {
        for (at, name) in self.names() {
            let _ = writeln!(text, "C {name}[V];");
            if at < self.outputs {
                continue;
            }
            let from = format!("p{name} + o{name}");
            let _ = match self.plan.inner[at] {
                Inner::Row => writeln!(text, "load_row<C, V>({from}, live, {name});"),
                Inner::Same => writeln!(text, "load_same<C, V>({from}, {name});"),
                Inner::Apart => {
                    let stride = self.stride(at);
                    writeln!(text, "load_apart<C, V>({from}, {stride}, live, {name});")
                }
            };
        }
    }

    fn store(&self, text: &mut String) {
        for (at, name) in self.names().take(self.outputs) {
            let to = format!("p{name} + o{name}");
            let _ = match self.plan.inner[at] {
                Inner::Row => writeln!(text, "store_row<C, V>({to}, live, {name});"),
                _ => writeln!(text, "store_apart<C, V>({to}, {}, live, {name});", self.stride(at)),
            };
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_text_follows_the_plan() {
        let plan = Plan {
            dims: vec![4, 8],
            strides: vec![vec![8, 1], vec![0, 1], vec![8, 2]],
            inner: vec![Inner::Row, Inner::Row, Inner::Apart],
            pack: 1,
        };
        let statements = Statements { text: "b0[j] = a0[j] + a1[j];\n".into(), constants: vec![] };
        let kinds = ["bf16", "float", "double"];
        let kernel = Kernel {
            plan: &plan,
            compute: "double",
            kinds: &kinds,
            outputs: 1,
            statements: &statements,
            wide: true,
        };
        let text = kernel.text();
        for part in [
            "typedef double C;",
            "typedef u64 Index;",
            "i64 dims[2]; i64 strides[3][2]; i64 constants[1];",
            "bf16* __restrict__ pb0, const float* __restrict__ pa0, const double* __restrict__ pa1",
            "load_row<C, V>(pa0 + oa0, live, a0);",
            "load_apart<C, V>(pa1 + oa1, layout.strides[2][1], live, a1);",
            "b0[j] = a0[j] + a1[j];",
            "store_row<C, V>(pb0 + ob0, live, b0);",
        ] {
            assert!(text.contains(part), "{part} is missing in\n{text}");
        }
    }
}
