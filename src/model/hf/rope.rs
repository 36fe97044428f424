//! The rotary embedding's keys of a `config.json`: at the top, in `rope_parameters` (transformers
//! 5) or in `rope_scaling` (earlier). Plain and yarn are known, every other type is refused.

use super::keys::Keys;
use crate::base::Result;
use crate::model::config::{ModelConfig, Yarn};
use serde_json::{Map, Value, json};

/// Reads `rope_theta`, `partial_rotary_factor` and the scaling into `config`, which holds the
/// family's defaults.
pub(super) fn read(keys: &mut Keys, config: &mut ModelConfig) -> Result<()> {
    let mut theta = keys.number("rope_theta")?;
    let mut share = keys.number("partial_rotary_factor")?;
    for key in ["rope_parameters", "rope_scaling"] {
        let Some(value) = keys.get(key) else { continue };
        let Value::Object(mut rope) = value else {
            return Err(keys.wrong(key, "an object", &value));
        };
        rope.retain(|_, value| !value.is_null());
        theta = number(keys, key, &mut rope, "rope_theta")?.or(theta);
        share = number(keys, key, &mut rope, "partial_rotary_factor")?.or(share);
        let kind = ["rope_type", "type"].map(|name| rope.remove(name));
        let kind = kind.into_iter().flatten().next().unwrap_or_else(|| json!("default"));
        let yarn = match kind.as_str() {
            Some("default") => None,
            Some("yarn") => Some(yarn(keys, key, &mut rope, config.max_position)?),
            _ => {
                return Err(keys.error(format!(
                    "key \"{key}.rope_type\" = {kind} is not supported, only \"default\" and \
                     \"yarn\" are"
                )));
            }
        };
        if yarn.is_some() && config.yarn.is_some() && yarn != config.yarn {
            return Err(keys.error("keys rope_parameters and rope_scaling disagree"));
        }
        config.yarn = yarn.or(config.yarn);
        if let Some((name, value)) = rope.iter().next() {
            return Err(keys.error(format!(
                "key \"{key}.{name}\" = {value} is not known for this kind of rotary embedding"
            )));
        }
    }
    let default = config.rope_share;
    config.rope_theta = theta.unwrap_or(config.rope_theta);
    config.rope_share = share.unwrap_or(default);
    // Only a family that turns a part by default reads the key at all.
    if default == 1.0 && config.rope_share != 1.0 {
        return Err(keys.error(format!(
            "key \"partial_rotary_factor\" = {} is not supported for this family, only 1 is",
            config.rope_share
        )));
    }
    let (theta, share) = (config.rope_theta, config.rope_share);
    let in_range = share > 0.0 && share <= 1.0 && theta > 0.0 && theta.is_finite();
    if !in_range {
        return Err(keys.error(format!(
            "rope_theta = {} must be above 0 and partial_rotary_factor = {} in (0, 1]",
            config.rope_theta, config.rope_share
        )));
    }
    Ok(())
}

fn number(
    keys: &Keys,
    key: &str,
    rope: &mut Map<String, Value>,
    name: &str,
) -> Result<Option<f64>> {
    let Some(value) = rope.remove(name) else { return Ok(None) };
    let found = value.as_f64().filter(|number| *number >= 0.0);
    found.map(Some).ok_or_else(|| keys.wrong(&format!("{key}.{name}"), "a number", &value))
}

fn yarn(
    keys: &Keys,
    key: &str,
    rope: &mut Map<String, Value>,
    max_position: usize,
) -> Result<Yarn> {
    let truncate = rope.remove("truncate").unwrap_or(json!(true));
    let mut number = |name: &str| number(keys, key, rope, name);
    let factor = number("factor")?.filter(|factor| *factor > 0.0);
    let original = number("original_max_position_embeddings")?.unwrap_or(max_position as f64);
    let positive = |value: Option<f64>, default| value.filter(|v| *v != 0.0).unwrap_or(default);
    Ok(Yarn {
        factor: factor.ok_or_else(|| keys.error(format!("key \"{key}.factor\" is missing")))?,
        original: original as usize,
        beta_fast: positive(number("beta_fast")?, 32.0),
        beta_slow: positive(number("beta_slow")?, 1.0),
        truncate: truncate
            .as_bool()
            .ok_or_else(|| keys.wrong(&format!("{key}.truncate"), "true or false", &truncate))?,
        attention_factor: number("attention_factor")?,
        mscale: number("mscale")?,
        mscale_all_dim: number("mscale_all_dim")?,
    })
}

/// Both spellings of the same: transformers 5 reads `rope_parameters`, earlier ones the others.
pub(super) fn write(config: &ModelConfig, out: &mut Map<String, Value>) {
    let mut rope = Map::new();
    if let Some(yarn) = &config.yarn {
        rope.insert("rope_type".into(), json!("yarn"));
        rope.insert("factor".into(), json!(yarn.factor));
        rope.insert("original_max_position_embeddings".into(), json!(yarn.original));
        rope.insert("beta_fast".into(), json!(yarn.beta_fast));
        rope.insert("beta_slow".into(), json!(yarn.beta_slow));
        rope.insert("truncate".into(), json!(yarn.truncate));
        let optional = [
            ("attention_factor", yarn.attention_factor),
            ("mscale", yarn.mscale),
            ("mscale_all_dim", yarn.mscale_all_dim),
        ];
        for (name, value) in optional {
            if let Some(value) = value {
                rope.insert(name.into(), json!(value));
            }
        }
        out.insert("rope_scaling".into(), Value::Object(rope.clone()));
    } else {
        rope.insert("rope_type".into(), json!("default"));
    }
    if config.rope_share != 1.0 {
        rope.insert("partial_rotary_factor".into(), json!(config.rope_share));
        out.insert("partial_rotary_factor".into(), json!(config.rope_share));
    }
    rope.insert("rope_theta".into(), json!(config.rope_theta));
    out.insert("rope_theta".into(), json!(config.rope_theta));
    out.insert("rope_parameters".into(), Value::Object(rope));
}
