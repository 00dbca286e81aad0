//! What a template may build: the size of its values, and of all of them together.
//!
//! The engine counts steps, but a step may double a string, so memory needs bounds of its own:
//!
//! * one value, counted as it would print (what is shared counts as often as it occurs), has at most
//!   [`MAX_VALUE`] bytes, a container [`PLACE`] an entry, and is nested at most [`MAX_DEPTH`] deep;
//! * everything built, printed or captured in one rendering has at most [`MAX_BUILT`] bytes together,
//!   freed or not, so that a heap of values is bounded too;
//! * sizes of containers are found by walking them; walks visit at most [`MAX_WALKED`] entries.
//!
//! An operation is measured before it runs where its result may be larger than twice what it is given
//! ([`super::growth`]), else right after it. Lazy sequences are made real when they are measured: each
//! holds the one it was made of, and a long chain of them would overflow the stack.
//!
//! A namespace may not lie in another value: it is the only value that changes, and would change the
//! size of what holds it.

use std::fmt::{self, Write};
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};

use minijinja::value::{Object, Value, ValueKind};
use minijinja::{Error, ErrorKind, State};

/// Bytes of one value, printed.
pub(super) const MAX_VALUE: usize = 16 << 20;
/// Bytes that one rendering builds.
pub(super) const MAX_BUILT: usize = 256 << 20;
/// Entries of containers that one rendering looks at to measure them.
const MAX_WALKED: usize = 100_000_000;
/// Containers in containers.
const MAX_DEPTH: usize = 128;
/// Bytes that an entry of a container counts beside what it prints.
const PLACE: usize = 32;

/// What a rendering has built so far.
#[derive(Debug, Default)]
pub(super) struct Meter {
    built: AtomicUsize,
    walked: AtomicUsize,
}

impl Object for Meter {}

impl Meter {
    /// That of a rendering.
    pub(super) fn of(state: &State) -> Arc<Self> {
        state.get_or_set_temp_object("danaus_meter", Self::default)
    }

    /// Counts bytes that were built.
    pub(super) fn charge(&self, bytes: usize) -> Result<(), Error> {
        let before = self.built.fetch_add(bytes, Ordering::Relaxed);
        if before.saturating_add(bytes) > MAX_BUILT {
            return Err(refuse(format!("builds more than {MAX_BUILT} bytes")));
        }
        Ok(())
    }

    /// Measures a new value and returns it, lazy sequences made real.
    pub(super) fn admit(&self, value: Value) -> Result<Value, Error> {
        match value.kind() {
            ValueKind::String | ValueKind::Bytes => {
                let bytes = value.as_str().map_or_else(|| value.len().unwrap_or(0), str::len);
                within(bytes)?;
                self.charge(bytes)?;
                Ok(value)
            }
            ValueKind::Seq | ValueKind::Map => {
                self.size(&value)?;
                self.charge(value.len().unwrap_or(0).saturating_mul(PLACE))?;
                Ok(value)
            }
            ValueKind::Iterable => {
                let mut walk = Walk { meter: self, bytes: 0 };
                let mut items = Vec::new();
                for item in value.try_iter()? {
                    walk.entry(&item, 1)?;
                    items.push(item);
                }
                self.charge(items.len() * PLACE)?;
                Ok(Value::from(items))
            }
            _ => Ok(value),
        }
    }

    /// The size of a value; an error above [`MAX_VALUE`].
    pub(super) fn size(&self, value: &Value) -> Result<usize, Error> {
        let mut walk = Walk { meter: self, bytes: 0 };
        walk.inside(value, 0)?;
        Ok(walk.bytes)
    }

    /// Refuses a namespace in the value of an entry that is about to be set, and a namespace that
    /// becomes too large with it.
    pub(super) fn admit_attribute(&self, value: &Value, owner: &Value) -> Result<(), Error> {
        let mut walk = Walk { meter: self, bytes: 0 };
        walk.entry(value, 1)?;
        walk.inside(owner, 0)
    }
}

/// Text that fits a value, else an error.
pub(super) fn bounded(text: fmt::Arguments<'_>) -> Result<String, Error> {
    let mut to = Text(String::new());
    match to.write_fmt(text) {
        Ok(()) => Ok(to.0),
        Err(_) => Err(too_large()),
    }
}

/// Refuses sizes above [`MAX_VALUE`].
pub(super) fn within(bytes: usize) -> Result<(), Error> {
    if bytes > MAX_VALUE { Err(too_large()) } else { Ok(()) }
}

fn too_large() -> Error {
    refuse(format!("builds a value of more than {MAX_VALUE} bytes"))
}

fn refuse(problem: String) -> Error {
    Error::new(ErrorKind::InvalidOperation, problem)
}

struct Text(String);

impl fmt::Write for Text {
    fn write_str(&mut self, text: &str) -> fmt::Result {
        if self.0.len() + text.len() > MAX_VALUE {
            return Err(fmt::Error);
        }
        self.0.push_str(text);
        Ok(())
    }
}

/// A sum over a value and all it holds.
struct Walk<'a> {
    meter: &'a Meter,
    bytes: usize,
}

impl Walk<'_> {
    fn add(&mut self, bytes: usize) -> Result<(), Error> {
        self.bytes = self.bytes.saturating_add(bytes);
        within(self.bytes)
    }

    /// An entry of a container.
    fn entry(&mut self, value: &Value, depth: usize) -> Result<(), Error> {
        if self.meter.walked.fetch_add(1, Ordering::Relaxed) > MAX_WALKED {
            return Err(refuse(format!("measures more than {MAX_WALKED} entries")));
        }
        self.add(PLACE)?;
        if is_namespace(value) {
            return Err(refuse("holds a namespace in another value".into()));
        }
        self.inside(value, depth)
    }

    /// The contents of a value.
    fn inside(&mut self, value: &Value, depth: usize) -> Result<(), Error> {
        if let Some(text) = value.as_str() {
            return self.add(text.len());
        }
        let container =
            matches!(value.kind(), ValueKind::Seq | ValueKind::Map | ValueKind::Iterable);
        if !container {
            return self.add(value.as_bytes().map_or(0, <[u8]>::len));
        }
        if depth > MAX_DEPTH {
            return Err(refuse(format!("nests values more than {MAX_DEPTH} deep")));
        }
        let Some(object) = value.as_object() else { return Ok(()) };
        if value.kind() == ValueKind::Map {
            for (key, entry) in object.try_iter_pairs().into_iter().flatten() {
                self.entry(&key, depth + 1)?;
                self.entry(&entry, depth + 1)?;
            }
        } else {
            for entry in object.try_iter().into_iter().flatten() {
                self.entry(&entry, depth + 1)?;
            }
        }
        Ok(())
    }
}

fn is_namespace(value: &Value) -> bool {
    value.as_object().is_some_and(|object| object.type_name().ends_with("::Namespace"))
}
