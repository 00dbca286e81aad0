//! The layers of a state-spaces model: `n_layer`, `ssm_cfg`, `attn_layer_idx`, `attn_cfg`.

use super::mixers::{heads, mamba1, mamba2};
use crate::Result;
use crate::config::Config;
use crate::families::Fields;
use serde_json::Value;

pub(super) fn translate(f: &mut Fields, c: &mut Config) -> Result<()> {
    let attends: Vec<bool> = c.layers.chars().map(|letter| letter == 'A').collect();
    f.section("ssm_cfg", |f| {
        let mut second = c.mamba2.is_some();
        match f.text_if("layer")? {
            Some("Mamba2") => second = true,
            Some("Mamba1") | None => {}
            Some(other) => return Err(f.refuse("layer", other, "Mamba1 or Mamba2")),
        }
        f.put("layer", if second { "Mamba2" } else { "Mamba1" });
        match second {
            true => mamba2(f, c.mamba2.get_or_insert_default()),
            false => mamba1(f, c.mamba1.get_or_insert_default(), c.d_model),
        }
    })?;
    let letter = if c.mamba2.is_some() { 'M' } else { 'S' };
    f.layers("n_layer", &mut c.layers, letter)?;
    let places = attention_places(f, c.layers.len(), &attends)?;
    let letters = (0..c.layers.len()).map(|at| if places.contains(&at) { 'A' } else { letter });
    c.layers = letters.collect();
    let mut attention = c.attention.take().filter(|_| !places.is_empty());
    f.section("attn_cfg", |f| {
        if !places.is_empty() {
            heads(f, attention.get_or_insert_default(), c.d_model)?;
        }
        // Without attention layers the section is not looked at.
        if places.is_empty() { Ok(()) } else { f.done(&[]) }
    })?;
    c.attention = attention;
    Ok(())
}

fn attention_places(f: &mut Fields, count: usize, attends: &[bool]) -> Result<Vec<usize>> {
    let own: Vec<usize> = (0..attends.len()).filter(|&at| attends[at]).collect();
    f.put("attn_layer_idx", own.clone());
    if f.writing() {
        return Ok(own);
    }
    let place = |value: &Value| value.as_u64().and_then(|at| usize::try_from(at).ok());
    let given = f.list("attn_layer_idx")?;
    let read: Option<Vec<usize>> = given.iter().map(place).collect();
    read.filter(|places| places.iter().all(|&at| at < count)).ok_or_else(|| {
        let shown = Value::from(given.to_vec());
        f.refuse("attn_layer_idx", shown, format!("a list of numbers below n_layer = {count}"))
    })
}
