//! Descriptions of operators: what `op list` prints and `op run` calls.
//!
//! Every operator folder exports a list of [`OpSpec`]; a room joins its lists in one place. A
//! specification names inputs, attributes and outputs as the field does, and its `call` goes through
//! the same public function that models use.

mod runner;

pub use runner::{Call, Registry};

use crate::{DType, Error, Result, Tensor};
use std::collections::BTreeMap;

/// One operator as seen from outside.
#[derive(Clone, Copy)]
pub struct OpSpec {
    /// Unique name.
    pub name: &'static str,
    /// One line: what it computes.
    pub summary: &'static str,
    /// Tensor inputs.
    pub inputs: &'static [Arg],
    /// Plain values.
    pub attributes: &'static [Attr],
    /// Names of the outputs, in the order `call` returns them.
    pub outputs: &'static [&'static str],
    /// Runs it; an output that the attributes switch off is `None`.
    pub call: fn(&Args) -> Result<Vec<Option<Tensor>>>,
}

impl OpSpec {
    /// The input that a tensor of this name is; `name.*` stands for every name below it.
    pub fn input(&self, name: &str) -> Option<&'static Arg> {
        self.inputs.iter().find(|arg| match arg.prefix() {
            Some(prefix) => name.len() > prefix.len() && name.starts_with(prefix),
            None => arg.name == name,
        })
    }
}

/// A tensor input.
#[derive(Clone, Copy, Debug)]
pub struct Arg {
    /// Name; `param.*` takes any number of tensors whose names begin with `param.`.
    pub name: &'static str,
    /// Shape in words, e.g. `batch seqlen heads head_dim`.
    pub shape: &'static str,
    /// Accepted element types.
    pub dtypes: &'static [DType],
    /// Whether it may be left out.
    pub optional: bool,
}

impl Arg {
    /// A floating-point input that must be given.
    pub const fn float(name: &'static str, shape: &'static str) -> Self {
        const FLOATS: &[DType] = &[DType::F64, DType::F32, DType::BF16];
        Self { name, shape, dtypes: FLOATS, optional: false }
    }

    /// An integer input (i32 or i64) that must be given.
    pub const fn int(name: &'static str, shape: &'static str) -> Self {
        Self { name, shape, dtypes: &[DType::I32, DType::I64], optional: false }
    }

    /// The same input, but it may be left out.
    pub const fn optional(self) -> Self {
        Self { optional: true, ..self }
    }

    /// What the names of a group of inputs begin with; `None` for a single input.
    pub fn prefix(&self) -> Option<&'static str> {
        self.name.strip_suffix('*')
    }
}

/// The type of an attribute's value.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Kind {
    /// `true` or `false`.
    Bool,
    /// A whole number.
    Int,
    /// A number.
    Float,
    /// A word.
    Text,
    /// Whole numbers separated by commas.
    Ints,
    /// Numbers separated by commas.
    Floats,
}

/// A plain value that an operator takes.
#[derive(Clone, Copy, Debug)]
pub struct Attr {
    /// Name.
    pub name: &'static str,
    /// Type.
    pub kind: Kind,
    /// Default as text; empty means absent.
    pub default: &'static str,
    /// What it does, units, range.
    pub doc: &'static str,
}

impl Attr {
    /// An attribute with its default and documentation.
    pub const fn new(
        name: &'static str,
        kind: Kind,
        default: &'static str,
        doc: &'static str,
    ) -> Self {
        Self { name, kind, default, doc }
    }
}

/// Arguments of one call by name: tensors, and attributes as text checked against their kind.
pub struct Args<'a> {
    spec: &'a OpSpec,
    tensors: BTreeMap<String, Tensor>,
    attributes: BTreeMap<String, String>,
}

impl<'a> Args<'a> {
    /// Checks names, presence and kinds against the specification.
    ///
    /// # Errors
    /// An unknown, missing or malformed argument; unknown names list the valid ones.
    pub fn new(
        spec: &'a OpSpec,
        tensors: BTreeMap<String, Tensor>,
        attributes: BTreeMap<String, String>,
    ) -> Result<Self> {
        let inputs: Vec<&str> = spec.inputs.iter().map(|arg| arg.name).collect();
        if let Some(name) = tensors.keys().find(|name| spec.input(name).is_none()) {
            return Err(Error::argument(spec.name, "input", name, inputs.join(", ")));
        }
        for arg in spec.inputs.iter().filter(|arg| !arg.optional && arg.prefix().is_none()) {
            if !tensors.contains_key(arg.name) {
                let valid = format!("a tensor [{}]", arg.shape);
                return Err(Error::argument(spec.name, arg.name, "missing", valid));
            }
        }
        let known: Vec<&str> = spec.attributes.iter().map(|attr| attr.name).collect();
        if let Some(name) = attributes.keys().find(|name| !known.contains(&name.as_str())) {
            let valid = if known.is_empty() { "none".to_string() } else { known.join(", ") };
            return Err(Error::argument(spec.name, "attribute", name, valid));
        }
        let args = Self { spec, tensors, attributes };
        for attr in spec.attributes {
            args.check(attr)?;
        }
        Ok(args)
    }

    fn check(&self, attr: &Attr) -> Result<()> {
        match attr.kind {
            Kind::Bool => self.bool(attr.name).map(drop),
            Kind::Int => self.int(attr.name).map(drop),
            Kind::Float => self.float(attr.name).map(drop),
            Kind::Text => Ok(()),
            Kind::Ints => self.ints(attr.name).map(drop),
            Kind::Floats => self.floats(attr.name).map(drop),
        }
    }

    /// An input that the specification requires.
    ///
    /// # Errors
    /// When it is missing.
    pub fn input(&self, name: &str) -> Result<&Tensor> {
        self.tensors.get(name).ok_or_else(|| {
            Error::internal(format!("{}: {name} is read but not declared", self.spec.name))
        })
    }

    /// An input that may be absent.
    pub fn optional(&self, name: &str) -> Option<&Tensor> {
        self.tensors.get(name)
    }

    /// An optional input that another argument makes necessary.
    ///
    /// # Errors
    /// When it is absent; `by` says what needs it.
    pub fn needed(&self, name: &'static str, by: &str) -> Result<&Tensor> {
        let missing =
            || Error::argument(self.spec.name, name, "missing", format!("a tensor for {by}"));
        self.optional(name).ok_or_else(missing)
    }

    /// The tensors of a group of inputs, under the parts of their names behind the prefix.
    pub fn group(&self, prefix: &str) -> BTreeMap<String, Tensor> {
        let below = |(name, tensor): (&String, &Tensor)| {
            Some((name.strip_prefix(prefix)?.to_string(), tensor.clone()))
        };
        self.tensors.iter().filter_map(below).collect()
    }

    /// The attribute's text: given, else the default; `None` when absent.
    pub fn text(&self, name: &str) -> Option<&str> {
        let default = || {
            let attr = self.spec.attributes.iter().find(|attr| attr.name == name);
            attr.map(|attr| attr.default).filter(|text| !text.is_empty())
        };
        self.attributes.get(name).map(String::as_str).or_else(default)
    }

    fn parse<T: std::str::FromStr>(&self, name: &str, valid: &str) -> Result<Option<T>> {
        let Some(text) = self.text(name) else { return Ok(None) };
        let error = |_| Error::argument(self.spec.name, name, text, valid);
        text.trim().parse().map(Some).map_err(error)
    }

    fn parse_list<T: std::str::FromStr>(&self, name: &str, valid: &str) -> Result<Option<Vec<T>>> {
        let Some(text) = self.text(name) else { return Ok(None) };
        let items = text.split(',').map(|item| item.trim().parse());
        let error = |_| Error::argument(self.spec.name, name, text, valid);
        items.collect::<std::result::Result<_, _>>().map(Some).map_err(error)
    }

    /// A truth value; absent means false.
    ///
    /// # Errors
    /// When the text is neither true nor false.
    pub fn bool(&self, name: &str) -> Result<bool> {
        Ok(self.parse(name, "true or false")?.unwrap_or(false))
    }

    /// A whole number.
    ///
    /// # Errors
    /// When the text is none.
    pub fn int(&self, name: &str) -> Result<Option<i64>> {
        self.parse(name, "a whole number")
    }

    /// A number.
    ///
    /// # Errors
    /// When the text is none.
    pub fn float(&self, name: &str) -> Result<Option<f64>> {
        self.parse(name, "a number")
    }

    /// Whole numbers.
    ///
    /// # Errors
    /// When the text is no list of them.
    pub fn ints(&self, name: &str) -> Result<Option<Vec<i64>>> {
        self.parse_list(name, "whole numbers separated by commas")
    }

    /// Numbers.
    ///
    /// # Errors
    /// When the text is no list of them.
    pub fn floats(&self, name: &str) -> Result<Option<Vec<f64>>> {
        self.parse_list(name, "numbers separated by commas")
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::Device;

    const SPEC: OpSpec = OpSpec {
        name: "scale",
        summary: "y = factor x",
        inputs: &[Arg::float("x", "n")],
        attributes: &[Attr::new("factor", Kind::Float, "2", "multiplier")],
        outputs: &["y"],
        call: |args| {
            let factor = args.float("factor")?.unwrap_or(1.0);
            Ok(vec![Some(args.input("x")?.affine(factor, 0.0)?)])
        },
    };

    fn call(tensors: &[&str], attributes: &[(&str, &str)]) -> Result<Vec<f64>> {
        let x = Tensor::from_vec(vec![1.0f64, 3.0], [2], &Device::Cpu)?;
        let tensors = tensors.iter().map(|name| (name.to_string(), x.clone())).collect();
        let pair = |(name, value): &(&str, &str)| (name.to_string(), value.to_string());
        let args = Args::new(&SPEC, tensors, attributes.iter().map(pair).collect())?;
        (SPEC.call)(&args)?[0].as_ref().map_or(Ok(vec![]), Tensor::to_vec)
    }

    #[test]
    fn defaults_values_and_complaints() {
        assert_eq!(call(&["x"], &[]).unwrap(), [2.0, 6.0]);
        assert_eq!(call(&["x"], &[("factor", "-1.5")]).unwrap(), [-1.5, -4.5]);
        let message = |result: Result<Vec<f64>>| result.unwrap_err().to_string();
        assert_eq!(message(call(&[], &[])), "scale: x is missing, valid is a tensor [n]");
        assert_eq!(message(call(&["x", "y"], &[])), "scale: input is y, valid is x");
        assert_eq!(
            message(call(&["x"], &[("fctor", "1")])),
            "scale: attribute is fctor, valid is factor"
        );
        assert_eq!(
            message(call(&["x"], &[("factor", "many")])),
            "scale: factor is many, valid is a number"
        );
    }
}
