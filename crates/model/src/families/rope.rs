//! Rotary settings in both spellings: `rope_parameters` of transformers 5, `rope_theta` and
//! `rope_scaling` of transformers 4 and before. The older one is written, because both read it.

use super::Fields;
use crate::Result;
use danaus_matrix::mixer::{AttentionConfig, RopeScaling};
use serde_json::{Value, json};

/// Translates the rotary part of an attention config.
///
/// # Errors
/// Naming a field that contradicts another, or a kind of scaling that is not implemented.
pub fn translate(f: &mut Fields, d_model: usize, a: &mut AttentionConfig) -> Result<()> {
    match f.writing() {
        true => write(f, a),
        false => read(f, d_model, a),
    }
}

fn read(f: &mut Fields, d_model: usize, a: &mut AttentionConfig) -> Result<()> {
    let (new, old) = (f.value("rope_parameters"), f.value("rope_scaling"));
    if let (Some(_), Some(old)) = (new, old)
        && new != Some(old)
    {
        return Err(f.refuse("rope_scaling", old, "absent beside rope_parameters"));
    }
    let outer = f.number_if("rope_theta")?;
    let mut share = f.number_if("partial_rotary_factor")?;
    let mut inner = None;
    f.section(if new.is_some() { "rope_parameters" } else { "rope_scaling" }, |part| {
        inner = part.number_if("rope_theta")?;
        share = part.number_if("partial_rotary_factor")?.or(share);
        a.rope_scaling = scaling(part)?;
        part.done(&["original_max_position_embeddings", "type"])
    })?;
    if let (Some(outer), Some(inner)) = (outer, inner)
        && outer != inner
    {
        return Err(f.refuse("rope_theta", outer, format!("{inner}, as in rope_parameters")));
    }
    a.rope_theta = Some(inner.or(outer).unwrap_or(10_000.0));
    if let Some(share) = share.filter(|&share| share != 1.0) {
        if !(share > 0.0 && share < 1.0) {
            return Err(f.refuse("partial_rotary_factor", share, "above 0, at most 1"));
        }
        let head_dim = a.head_dim.unwrap_or(d_model / a.n_heads.max(1));
        a.rotary_dim = Some((head_dim as f64 * share) as usize);
    }
    Ok(())
}

fn scaling(part: &mut Fields) -> Result<Option<RopeScaling>> {
    let old = part.text_if("type")?;
    let kind = part.text_if("rope_type")?.or(old).unwrap_or("default");
    let needed = |part: &mut Fields, field: &str| {
        let given = part.number_if(field)?;
        given.ok_or_else(|| part.refuse(field, "missing", "a number above 0"))
    };
    Ok(match kind {
        "default" => None,
        "linear" => Some(RopeScaling::Linear { factor: needed(part, "factor")? }),
        "llama3" => {
            let mut original_max_positions = 0;
            part.size("original_max_position_embeddings", &mut original_max_positions)?;
            Some(RopeScaling::Llama3 {
                factor: needed(part, "factor")?,
                low_freq_factor: needed(part, "low_freq_factor")?,
                high_freq_factor: needed(part, "high_freq_factor")?,
                original_max_positions,
            })
        }
        other => return Err(part.refuse("rope_type", other, "default, linear or llama3")),
    })
}

fn write(f: &mut Fields, a: &AttentionConfig) -> Result<()> {
    f.put("rope_theta", a.rope_theta);
    f.put(
        "rope_scaling",
        match &a.rope_scaling {
            // Reading it back shows that the format has no word for it.
            None | Some(RopeScaling::Factors { .. }) => Value::Null,
            Some(RopeScaling::Linear { factor }) => {
                json!({ "rope_type": "linear", "factor": factor })
            }
            Some(RopeScaling::Llama3 {
                factor,
                low_freq_factor,
                high_freq_factor,
                original_max_positions,
            }) => json!({
                "rope_type": "llama3", "factor": factor, "low_freq_factor": low_freq_factor,
                "high_freq_factor": high_freq_factor,
                "original_max_position_embeddings": original_max_positions,
            }),
        },
    );
    Ok(())
}
