//! Filters and methods whose results may be far larger than what they are given: measured beforehand.

use std::borrow::Cow;

use minijinja::value::{Rest, Value, ValueKind};
use minijinja::{Environment, Error, State, filters};
use minijinja_contrib::pycompat::unknown_method_callback;

use super::meter::{Meter, bounded, within};

/// An upper bound of the bytes of a result, from the arguments (the value first).
type Bound = fn(&Meter, &[Value]) -> Result<usize, Error>;

/// Puts them in the place of those of the engine.
pub(super) fn install(environment: &mut Environment<'static>) {
    let guarded: [(&'static str, Value, Bound); 6] = [
        ("replace", Value::from_function(filters::replace), replaced),
        ("join", Value::from_function(filters::join), joined),
        ("indent", Value::from_function(filters::indent), indented),
        ("slice", Value::from_function(filters::slice), cut),
        ("batch", Value::from_function(filters::batch), cut),
        ("format", Value::from_function(filters::format), formatted),
    ];
    for (name, filter, bound) in guarded {
        let filter = move |state: &State, arguments: Rest<Value>| -> Result<Value, Error> {
            within(bound(&Meter::of(state), &arguments)?)?;
            filter.call(state, &arguments)
        };
        environment.add_filter(name, filter);
    }
    environment.add_filter("pprint", |value: Value| bounded(format_args!("{value:#?}")));
    environment.set_unknown_method_callback(|state, value, method, arguments| {
        let bound: Option<Bound> = match method {
            "replace" => Some(replaced),
            "join" => Some(|meter, arguments| match arguments {
                [joiner, list, ..] => joined(meter, &[list.clone(), joiner.clone()]),
                _ => Ok(0),
            }),
            "format" => Some(formatted),
            _ => None,
        };
        if let (Some(bound), ValueKind::String) = (bound, value.kind()) {
            let all: Vec<Value> = std::iter::once(value).chain(arguments).cloned().collect();
            within(bound(&Meter::of(state), &all)?)?;
        }
        unknown_method_callback(state, value, method, arguments)
    });
    // It prints all variables and the whole template.
    environment.remove_global("debug");
}

/// Refuses `left * right` where it would be too large: strings are repeated at once, sequences lazily.
pub(super) fn multiplied(meter: &Meter, left: &Value, right: &Value) -> Result<(), Error> {
    let repeatable = |value: &Value| value.as_str().is_some() || value.as_object().is_some();
    let (value, count) = match (repeatable(left), repeatable(right)) {
        (true, _) => (left, right),
        (_, true) => (right, left),
        _ => return Ok(()),
    };
    within(meter.size(value)?.saturating_mul(count.as_usize().unwrap_or(0)))
}

/// The largest integer among arguments, keyword arguments included.
fn largest(arguments: &[Value]) -> usize {
    let of = |value: &Value| value.as_usize().unwrap_or(0);
    let inside = |value: &Value| match value.kind() {
        ValueKind::Map => {
            let pairs = value.as_object().and_then(|map| map.try_iter_pairs());
            pairs.into_iter().flatten().map(|(_, entry)| of(&entry)).max().unwrap_or(0)
        }
        _ => of(value),
    };
    arguments.iter().map(inside).max().unwrap_or(0)
}

/// A value as it prints, as far as it may be.
pub(super) fn text_of(value: &Value) -> Result<Cow<'_, str>, Error> {
    match value.as_str() {
        Some(text) => Ok(Cow::Borrowed(text)),
        None => Ok(Cow::Owned(bounded(format_args!("{value}"))?)),
    }
}

/// `replace(value, from, to)`.
fn replaced(_: &Meter, arguments: &[Value]) -> Result<usize, Error> {
    let [value, from, to, ..] = arguments else { return Ok(0) };
    let (value, from, to) = (text_of(value)?, text_of(from)?, text_of(to)?);
    let places = value.matches(from.as_ref()).count();
    Ok(places.saturating_mul(to.len()).saturating_add(value.len()))
}

/// `join(list, joiner)`.
fn joined(meter: &Meter, arguments: &[Value]) -> Result<usize, Error> {
    let Some(list) = arguments.first() else { return Ok(0) };
    let joiner = arguments.get(1).map(text_of).transpose()?.map_or(0, |joiner| joiner.len());
    let count = match list.as_str() {
        Some(text) => text.chars().count(),
        None => list.len().unwrap_or(0),
    };
    Ok(meter.size(list)?.saturating_add(count.saturating_mul(joiner)))
}

/// `indent(value, width)`.
fn indented(_: &Meter, arguments: &[Value]) -> Result<usize, Error> {
    let Some(value) = arguments.first() else { return Ok(0) };
    let text = text_of(value)?;
    let width = largest(&arguments[1..]).max(4);
    Ok(width.saturating_mul(text.split('\n').count()).saturating_add(text.len()))
}

/// `slice(list, count)` and `batch(list, count)`: as many places as the count says.
fn cut(meter: &Meter, arguments: &[Value]) -> Result<usize, Error> {
    let Some(list) = arguments.first() else { return Ok(0) };
    let places = largest(&arguments[1..]).saturating_mul(64);
    Ok(meter.size(list)?.saturating_add(places))
}

/// `format(text, ...)` in both styles: widths and precisions are numbers in the text, or among the
/// arguments where the text has a star; a field prints an argument at most.
fn formatted(meter: &Meter, arguments: &[Value]) -> Result<usize, Error> {
    let Some(text) = arguments.first().map(text_of).transpose()? else { return Ok(0) };
    let digits = text.split(|c: char| !c.is_ascii_digit()).filter(|run| !run.is_empty());
    let widths = digits
        .map(|run| run.parse::<usize>().unwrap_or(usize::MAX))
        .fold(0, |sum: usize, width| sum.saturating_add(width));
    let stars = text.matches('*').count().saturating_mul(largest(&arguments[1..]));
    let mut printed = 0_usize;
    for argument in &arguments[1..] {
        printed = printed.saturating_add(meter.size(argument)?);
    }
    let fields = text.matches(['%', '{']).count();
    let sum = fields.saturating_mul(printed).saturating_add(widths).saturating_add(stars);
    Ok(sum.saturating_add(text.len()))
}
