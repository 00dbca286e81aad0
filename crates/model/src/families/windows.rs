//! Which layers attend in a window: Mistral (all), Qwen2 and Qwen3 (from a layer on, or a list).

use super::Fields;
use crate::Result;
use crate::config::MAX_LAYERS;
use danaus_matrix::mixer::AttentionConfig;
use serde_json::Value;

/// What a file without `max_window_layers` or `sliding_window` means.
const DEFAULTS: (usize, usize) = (28, 4096);

/// Translates the number of layers and their windows. A window of W counts the query's own position in
/// the other format, and not in ours.
///
/// # Errors
/// Naming a field that contradicts another.
pub fn translate(f: &mut Fields, layers: &mut String, a: &mut AttentionConfig) -> Result<()> {
    match f.writing() {
        true => write(f, layers, a),
        false => read(f, layers, a),
    }
}

fn read(f: &mut Fields, layers: &mut String, a: &mut AttentionConfig) -> Result<()> {
    let mut count = 0;
    f.size("num_hidden_layers", &mut count)?;
    if count == 0 || count > MAX_LAYERS {
        return Err(f.refuse("num_hidden_layers", count, format!("1..={MAX_LAYERS}")));
    }
    let qwen = f.kind().starts_with("qwen");
    let has_windows = qwen || f.kind() == "mistral";
    let (mut on, mut first) = (has_windows, 0);
    if qwen {
        f.flag("use_sliding_window", &mut on, false)?;
        f.size_or("max_window_layers", &mut first, DEFAULTS.0)?;
    }
    let width = match has_windows {
        true if f.has("sliding_window") => f.size_if("sliding_window")?,
        true => Some(DEFAULTS.1),
        false => None,
    };
    let types = f.list("layer_types")?;
    if !types.is_empty() && types.len() != count {
        let valid = format!("{count} of them, from num_hidden_layers");
        return Err(f.refuse("layer_types", format!("a list of {}", types.len()), valid));
    }
    let width = width.filter(|_| on);
    let letter = |index: usize| match types.get(index).map(Value::as_str) {
        None => Ok(if width.is_some() && index >= first { 'W' } else { 'A' }),
        Some(Some("full_attention")) => Ok('A'),
        Some(Some("sliding_attention")) if width.is_some() => Ok('W'),
        Some(_) => {
            let given = types[index].to_string();
            Err(f.refuse("layer_types", given, "full_attention, or sliding_attention in a window"))
        }
    };
    *layers = (0..count).map(letter).collect::<Result<_>>()?;
    if layers.contains('W') {
        let width = width.filter(|&width| width > 0);
        let width = width.ok_or_else(|| f.refuse("sliding_window", 0, "at least 1"))?;
        a.window = Some(width - 1);
    }
    Ok(())
}

fn write(f: &mut Fields, layers: &str, a: &AttentionConfig) -> Result<()> {
    f.put("num_hidden_layers", layers.len());
    let width = a.window.map(|window| window + 1);
    if f.kind() != "llama" {
        f.put("sliding_window", width.map_or(Value::Null, Value::from));
    }
    if f.kind().starts_with("qwen") {
        let types = layers.chars().map(|letter| match letter {
            'W' => "sliding_attention",
            _ => "full_attention",
        });
        f.put("use_sliding_window", width.is_some());
        f.put("max_window_layers", layers.find('W').unwrap_or(layers.len()));
        f.put("layer_types", types.collect::<Vec<_>>());
    }
    Ok(())
}
