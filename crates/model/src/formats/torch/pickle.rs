//! A pickle machine that can build state dicts and nothing else.
//!
//! Pickle is a stack language whose `REDUCE` calls any Python function, which is why loading a foreign
//! pickle with Python can run anything. This machine knows four globals ([`Global`]), runs no code,
//! and refuses every other global and instruction by name. Instructions are those that Python's
//! pickler emits for state dicts with protocols 2 to 5.
//!
//! What it allocates is bounded before it allocates: every value that outlives the stack is charged to
//! a budget (the file's length plus a constant), the stack and its marks have limits.

use super::fault::Fault;
use super::value::{Arenas, Global, MAX_RANK, StorageRef, TensorRef, Value};
use std::collections::HashMap;

/// Values on the stack at once; Python's pickler sends containers in batches of 1000.
const MAX_STACK: usize = 1 << 16;
/// Open marks, the nesting of containers.
const MAX_DEPTH: usize = 64;
/// Bytes of memory granted beyond the file's length.
pub(super) const SLACK: usize = 8 << 20;

/// What a pickle comes to: its top value and what that refers to.
pub struct Loaded<'a> {
    /// The top value.
    pub top: Value<'a>,
    /// What it refers to.
    pub arenas: Arenas<'a>,
}

struct Machine<'a> {
    pickle: &'a [u8],
    at: usize,
    stack: Vec<Value<'a>>,
    marks: Vec<usize>,
    memo: HashMap<u32, Value<'a>>,
    arenas: Arenas<'a>,
    budget: usize,
    granted: usize,
}

/// Runs a pickle from a file of `file_len` bytes.
///
/// # Errors
/// The first instruction that is refused, malformed or over a limit.
pub fn load(pickle: &[u8], file_len: usize) -> Result<Loaded<'_>, Fault> {
    let granted = file_len.saturating_add(SLACK);
    let mut machine = Machine {
        pickle,
        at: 0,
        stack: Vec::new(),
        marks: Vec::new(),
        memo: HashMap::new(),
        arenas: Arenas::default(),
        budget: granted,
        granted,
    };
    while machine.step()? {}
    let top = machine.pop()?;
    if !machine.stack.is_empty() || machine.at != pickle.len() {
        return Err(machine.malformed("something is left behind the end mark"));
    }
    Ok(Loaded { top, arenas: machine.arenas })
}

impl<'a> Machine<'a> {
    fn malformed(&self, what: impl Into<String>) -> Fault {
        Fault::Malformed { what: what.into(), at: self.at }
    }

    /// Charges `count` values that stay; a growing vector may take twice their size.
    fn charge(&mut self, count: usize, size: usize) -> Result<(), Fault> {
        let bytes = count.saturating_mul(2 * size);
        self.budget = self.budget.checked_sub(bytes).ok_or(Fault::Limit {
            what: "bytes of values for a file of its size",
            limit: self.granted,
            at: self.at,
        })?;
        Ok(())
    }

    fn take(&mut self, len: usize) -> Result<&'a [u8], Fault> {
        let end = self.at.checked_add(len);
        let bytes = end.and_then(|end| self.pickle.get(self.at..end));
        let bytes = bytes.ok_or(Fault::Truncated(self.pickle.len()))?;
        self.at += len;
        Ok(bytes)
    }

    fn byte(&mut self) -> Result<u8, Fault> {
        Ok(self.take(1)?[0])
    }

    /// A little-endian number of up to eight bytes.
    fn number(&mut self, len: usize) -> Result<u64, Fault> {
        let bytes = self.take(len)?;
        Ok(bytes.iter().rev().fold(0, |value, &byte| value << 8 | u64::from(byte)))
    }

    fn text(&mut self, length_bytes: usize) -> Result<&'a str, Fault> {
        let len = self.number(length_bytes)?;
        let len = usize::try_from(len).map_err(|_| Fault::Truncated(self.pickle.len()))?;
        let bytes = self.take(len)?;
        std::str::from_utf8(bytes).map_err(|_| self.malformed("a text is not UTF-8"))
    }

    fn line(&mut self) -> Result<&'a str, Fault> {
        let rest = &self.pickle[self.at..];
        let len = rest.iter().position(|&byte| byte == b'\n');
        let len = len.ok_or(Fault::Truncated(self.pickle.len()))?;
        let bytes = self.take(len + 1)?;
        std::str::from_utf8(&bytes[..len]).map_err(|_| self.malformed("a name is not UTF-8"))
    }

    fn push(&mut self, value: Value<'a>) -> Result<(), Fault> {
        if self.stack.len() >= MAX_STACK {
            return Err(Fault::Limit { what: "pending values", limit: MAX_STACK, at: self.at });
        }
        self.stack.push(value);
        Ok(())
    }

    /// Takes the top value; values below an open mark are out of reach.
    fn pop(&mut self) -> Result<Value<'a>, Fault> {
        let floor = self.marks.last().copied().unwrap_or(0);
        match self.stack.len() > floor {
            true => self.stack.pop().ok_or_else(|| self.malformed("the stack is empty")),
            false => Err(self.malformed("a value is missing")),
        }
    }

    fn top(&self) -> Result<Value<'a>, Fault> {
        let floor = self.marks.last().copied().unwrap_or(0);
        let top = self.stack.last().filter(|_| self.stack.len() > floor);
        top.copied().ok_or_else(|| self.malformed("a value is missing"))
    }

    /// Where the values above the last mark begin; the mark is removed.
    fn mark(&mut self) -> Result<usize, Fault> {
        self.marks.pop().ok_or_else(|| self.malformed("a mark is missing"))
    }

    fn tuple(&mut self, from: usize) -> Result<(), Fault> {
        let len = self.stack.len() - from;
        self.charge(len, size_of::<Value>())?;
        let start = self.arenas.items.len();
        self.arenas.items.extend(self.stack.drain(from..));
        self.push(Value::Tuple { start, len })
    }

    /// The tuple of the last `len` values.
    fn short_tuple(&mut self, len: usize) -> Result<(), Fault> {
        let floor = self.marks.last().copied().unwrap_or(0);
        match self.stack.len().checked_sub(len).filter(|&from| from >= floor) {
            Some(from) => self.tuple(from),
            None => Err(self.malformed("a value is missing")),
        }
    }

    fn new_list(&mut self) -> Result<(), Fault> {
        self.charge(1, size_of::<Vec<Value>>())?;
        self.arenas.lists.push(Vec::new());
        self.push(Value::List(self.arenas.lists.len() - 1))
    }

    fn new_dict(&mut self) -> Result<(), Fault> {
        self.charge(1, size_of::<Vec<Value>>())?;
        self.arenas.dicts.push(Vec::new());
        self.push(Value::Dict(self.arenas.dicts.len() - 1))
    }

    fn remember(&mut self, index: u64) -> Result<(), Fault> {
        let value = self.top()?;
        let index =
            u32::try_from(index).map_err(|_| self.malformed("a memo number is too large"))?;
        self.charge(1, 2 * size_of::<(u32, Value)>())?;
        self.memo.insert(index, value);
        Ok(())
    }

    fn recall(&mut self, index: u64) -> Result<(), Fault> {
        let value = u32::try_from(index).ok().and_then(|index| self.memo.get(&index).copied());
        let value = value.ok_or_else(|| self.malformed(format!("memo {index} is not set")))?;
        self.push(value)
    }

    fn global(&mut self, module: &str, name: &str) -> Result<(), Fault> {
        let global = Global::find(module, name);
        let shown = |text: &str| text.chars().take(100).collect::<String>();
        let refused = || Fault::Global(format!("{}.{}", shown(module), shown(name)));
        self.push(Value::Global(global.ok_or_else(refused)?))
    }

    fn append(&mut self, from: usize) -> Result<(), Fault> {
        self.charge(self.stack.len() - from, size_of::<Value>())?;
        let values: Vec<Value> = self.stack.drain(from..).collect();
        match self.top()? {
            Value::List(list) => self.arenas.lists[list].extend(values),
            other => return Err(self.malformed(format!("{} gets items", other.kind()))),
        }
        Ok(())
    }

    fn set_items(&mut self, from: usize) -> Result<(), Fault> {
        let values = self.stack.len() - from;
        self.charge(values, size_of::<Value>())?;
        if !values.is_multiple_of(2) {
            return Err(self.malformed("a key without a value"));
        }
        let values: Vec<Value> = self.stack.drain(from..).collect();
        match self.top()? {
            Value::Dict(dict) => {
                let entries = values.chunks_exact(2).map(|pair| (pair[0], pair[1]));
                self.arenas.dicts[dict].extend(entries);
            }
            other => return Err(self.malformed(format!("{} gets entries", other.kind()))),
        }
        Ok(())
    }

    /// The last `len` values belong to the container below them.
    fn pending(&self, len: usize) -> Result<usize, Fault> {
        let floor = self.marks.last().copied().unwrap_or(0);
        let from = self.stack.len().checked_sub(len).filter(|&from| from > floor);
        from.ok_or_else(|| self.malformed("a value is missing"))
    }

    /// One instruction; false at the end mark.
    fn step(&mut self) -> Result<bool, Fault> {
        let at = self.at;
        let code = self.byte()?;
        match code {
            b'.' => return Ok(false),
            0x80 => match self.byte()? {
                2..=5 => {}
                other => return Err(Fault::Protocol(other)),
            },
            0x95 => {
                if self.number(8)? > (self.pickle.len() - self.at) as u64 {
                    return Err(Fault::Truncated(self.pickle.len()));
                }
            }
            b'(' => {
                if self.marks.len() >= MAX_DEPTH {
                    return Err(Fault::Limit { what: "nested marks", limit: MAX_DEPTH, at });
                }
                self.marks.push(self.stack.len());
            }
            b'0' => {
                self.pop()?;
            }
            b'1' => {
                let from = self.mark()?;
                self.stack.truncate(from);
            }
            b'q' => self.number(1).and_then(|index| self.remember(index))?,
            b'r' => self.number(4).and_then(|index| self.remember(index))?,
            0x94 => self.remember(self.memo.len() as u64)?,
            b'h' => self.number(1).and_then(|index| self.recall(index))?,
            b'j' => self.number(4).and_then(|index| self.recall(index))?,
            b'c' => {
                let (module, name) = (self.line()?, self.line()?);
                self.global(module, name)?;
            }
            0x93 => match (self.pop()?, self.pop()?) {
                (Value::Text(name), Value::Text(module)) => self.global(module, name)?,
                _ => return Err(self.malformed("a global's name is no text")),
            },
            b'R' => self.reduce()?,
            b'b' => self.build()?,
            b'Q' => self.persistent()?,
            b'N' | 0x88 | 0x89 | b'J' | b'K' | b'M' | 0x8a | b'G' | b'X' | 0x8c | 0x8d => {
                let value = self.scalar(code)?;
                self.push(value)?;
            }
            b'}' | b']' | b')' | b't' | 0x85..=0x87 | b'a' | b'e' | b's' | b'u' => {
                self.container(code)?;
            }
            other => return Err(Fault::Instruction { name: instruction(other), at }),
        }
        Ok(true)
    }

    fn scalar(&mut self, code: u8) -> Result<Value<'a>, Fault> {
        Ok(match code {
            b'N' => Value::None,
            0x88 => Value::Bool(true),
            0x89 => Value::Bool(false),
            b'J' => Value::Int(i64::from(self.number(4)? as u32 as i32)),
            b'K' => Value::Int(self.number(1)? as i64),
            b'M' => Value::Int(self.number(2)? as i64),
            0x8a => {
                let len = usize::from(self.byte()?);
                if len > 8 {
                    return Err(self.malformed("an integer of more than 64 bits"));
                }
                // Two's complement: shifting up and down again extends the sign.
                let (value, unused) = (self.number(len)?, 64 - 8 * len as u32);
                let value = value.checked_shl(unused).unwrap_or(0) as i64;
                Value::Int(value.checked_shr(unused).unwrap_or(0))
            }
            b'G' => {
                self.take(8)?;
                Value::Float
            }
            b'X' => Value::Text(self.text(4)?),
            0x8c => Value::Text(self.text(1)?),
            _ => Value::Text(self.text(8)?),
        })
    }

    fn container(&mut self, code: u8) -> Result<(), Fault> {
        match code {
            b'}' => self.new_dict(),
            b']' => self.new_list(),
            b')' => self.short_tuple(0),
            b't' => self.mark().and_then(|from| self.tuple(from)),
            b'a' => self.pending(1).and_then(|from| self.append(from)),
            b'e' => self.mark().and_then(|from| self.append(from)),
            b's' => self.pending(2).and_then(|from| self.set_items(from)),
            b'u' => self.mark().and_then(|from| self.set_items(from)),
            short => self.short_tuple(usize::from(short - 0x84)),
        }
    }

    /// A "call" of one of the permitted globals.
    fn reduce(&mut self) -> Result<(), Fault> {
        let (args, callee) = (self.pop()?, self.pop()?);
        let Value::Global(global) = callee else {
            return Err(self.malformed(format!("{} is called", callee.kind())));
        };
        let args = self.arenas.tuple(args).map(<[_]>::to_vec);
        match (global, args.as_deref()) {
            (Global::OrderedDict, Some([])) => self.new_dict(),
            (Global::RebuildTensor, Some([storage, offset, shape, strides, _, _])) => {
                self.tensor(*storage, *offset, *shape, *strides)
            }
            (
                Global::RebuildTensor,
                Some([storage, offset, shape, strides, _, _, Value::Dict(_)]),
            ) => self.tensor(*storage, *offset, *shape, *strides),
            (Global::RebuildParameter, Some([Value::Tensor(tensor), _, _])) => {
                self.push(Value::Tensor(*tensor))
            }
            _ => Err(self.malformed(format!("{global:?} is called with other arguments"))),
        }
    }

    /// Attributes of a dictionary: a state dict carries version numbers of its modules, which are not
    /// tensors and are left out.
    fn build(&mut self) -> Result<(), Fault> {
        let state = self.pop()?;
        match (self.top()?, state) {
            (Value::Dict(_), Value::Dict(state)) => {
                let known = |key: &Value| matches!(key, Value::Text("_metadata"));
                match self.arenas.dicts[state].iter().all(|(key, _)| known(key)) {
                    true => Ok(()),
                    false => Err(self.malformed("attributes other than _metadata")),
                }
            }
            (other, _) => Err(self.malformed(format!("{} gets attributes", other.kind()))),
        }
    }

    /// A reference to data outside of the pickle: `("storage", type, key, location, elements)`.
    fn persistent(&mut self) -> Result<(), Fault> {
        let id = self.pop()?;
        let fields = self.arenas.tuple(id);
        let Some(&[Value::Text("storage"), global, Value::Text(key), _, Value::Int(elements)]) =
            fields
        else {
            return Err(self.malformed("a reference that is no storage"));
        };
        let Value::Global(Global::Storage(dtype)) = global else {
            return Err(self.malformed("a storage of no known type"));
        };
        let elements = u64::try_from(elements);
        let elements = elements.map_err(|_| self.malformed("a storage of negative size"))?;
        self.charge(1, size_of::<StorageRef>())?;
        self.arenas.storages.push(StorageRef { key, dtype, elements });
        self.push(Value::Storage(self.arenas.storages.len() - 1))
    }

    fn tensor(
        &mut self,
        storage: Value<'a>,
        offset: Value<'a>,
        shape: Value<'a>,
        strides: Value<'a>,
    ) -> Result<(), Fault> {
        let (Value::Storage(storage), Value::Int(offset)) = (storage, offset) else {
            return Err(self.malformed("a tensor without storage and offset"));
        };
        let (shape, strides) = (self.integers(shape)?, self.integers(strides)?);
        let elements = self.arenas.storages[storage].elements;
        match fit(offset, &shape, &strides, elements) {
            Ok((offset, sizes, steps)) => {
                self.charge(1, size_of::<TensorRef>() + 16 * sizes.len())?;
                let tensor = TensorRef { storage, offset, shape: sizes, strides: steps };
                self.arenas.tensors.push(tensor);
                self.push(Value::Tensor(self.arenas.tensors.len() - 1))
            }
            Err(why) => Err(Fault::Tensor { shape, strides, offset, why }),
        }
    }

    fn integers(&self, value: Value<'a>) -> Result<Vec<i64>, Fault> {
        let items = self.arenas.tuple(value).filter(|items| items.len() <= MAX_RANK);
        let items = items.ok_or_else(|| {
            self.malformed(format!("a shape is no tuple of up to {MAX_RANK} dimensions"))
        })?;
        let integer = |item: &Value| match item {
            Value::Int(value) => Ok(*value),
            other => Err(self.malformed(format!("a dimension is {}", other.kind()))),
        };
        items.iter().map(integer).collect()
    }
}

/// Offset, shape and strides of a view that lies inside of `elements`, or what is wrong with it.
///
/// A view may not have more elements than its storage: what a reader allocates for it is then bounded
/// by what the file holds. Expanded tensors (stride 0) are refused by this; `contiguous()` before
/// saving makes them real.
fn fit(
    offset: i64,
    shape: &[i64],
    strides: &[i64],
    elements: u64,
) -> Result<(u64, Vec<usize>, Vec<usize>), String> {
    let unsigned = |values: &[i64]| -> Option<Vec<usize>> {
        values.iter().map(|&value| usize::try_from(value).ok()).collect()
    };
    let (Some(sizes), Some(steps)) = (unsigned(shape), unsigned(strides)) else {
        return Err("has negative sizes".into());
    };
    let offset = u64::try_from(offset).map_err(|_| "has a negative offset")?;
    if sizes.len() != steps.len() {
        return Err("has another number of strides than of dimensions".into());
    }
    // An empty tensor has no elements anywhere, so only its sizes count.
    if sizes.contains(&0) {
        return match sizes.iter().all(|&size| size as u64 <= u64::from(u32::MAX)) {
            true => Ok((0, sizes, steps)),
            false => Err("is too large".into()),
        };
    }
    let (mut count, mut last) = (1u64, Some(offset));
    for (&size, &step) in sizes.iter().zip(&steps) {
        count = count.saturating_mul(size as u64);
        let reach = (size as u64 - 1).checked_mul(step as u64);
        last = last.zip(reach).and_then(|(last, reach)| last.checked_add(reach));
    }
    if count > elements {
        return Err(format!("has more elements than its storage of {elements}"));
    }
    match last {
        Some(last) if last < elements => Ok((offset, sizes, steps)),
        _ => Err(format!("reaches beyond its storage of {elements} elements")),
    }
}

/// The name of an instruction that is not executed.
fn instruction(code: u8) -> String {
    let name = match code {
        b'i' => "INST",
        b'o' => "OBJ",
        0x81 => "NEWOBJ",
        0x92 => "NEWOBJ_EX",
        0x82..=0x84 => "EXT",
        b'P' => "PERSID",
        b'I' => "INT",
        b'L' => "LONG",
        b'F' => "FLOAT",
        b'S' | b'T' | b'U' => "STRING",
        b'V' => "UNICODE",
        b'B' | b'C' | 0x8e => "BYTES",
        0x96 => "BYTEARRAY8",
        0x97 | 0x98 => "BUFFER",
        0x8f..=0x91 => "SET",
        b'2' => "DUP",
        b'g' => "GET",
        b'p' => "PUT",
        b'l' => "LIST",
        b'd' => "DICT",
        0x8b => "LONG4",
        other => return format!("{other:#04x}"),
    };
    name.to_string()
}
