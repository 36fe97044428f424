//! `quantization_config` of a `config.json`: which encodings of weights are known. What each
//! tensor is encoded in is read from the files; here an unknown scheme is refused by name.

use super::keys::Keys;
use crate::base::Result;
use crate::model::family::Family;
use serde_json::{Value, json};

/// DeepSeek's FP8 (e4m3 in tiles of 128×128) for any family, gpt-oss's MXFP4 for that family.
pub(super) fn read(keys: &mut Keys, family: Family) -> Result<()> {
    const KEY: &str = "quantization_config";
    let Some(value) = keys.get(KEY) else { return Ok(()) };
    let Value::Object(scheme) = &value else {
        return Err(keys.wrong(KEY, "an object", &value));
    };
    let method = scheme.get("quant_method").and_then(Value::as_str).unwrap_or_default();
    let known = match method {
        "fp8" => scheme.get("weight_block_size") == Some(&json!([128, 128])),
        "mxfp4" => family == Family::GptOss,
        _ => false,
    };
    if !known {
        return Err(keys.error(format!(
            "key \"{KEY}\" with quant_method \"{method}\" is not supported; known are \"fp8\" \
             with weight_block_size [128, 128], and \"mxfp4\" for gpt_oss"
        )));
    }
    for (name, value) in scheme {
        let fine = match name.as_str() {
            // How the tensors are marked; the files say the same.
            "quant_method" | "weight_block_size" | "modules_to_not_convert" => true,
            "fmt" => value == "e4m3",
            // Activations stay f32 here, which is closer to the model than rounding them.
            "activation_scheme" => value == "dynamic",
            "scale_fmt" => method == "fp8",
            _ => value.is_null(),
        };
        if !fine {
            return Err(keys.error(format!("key \"{KEY}.{name}\" = {value} is not supported")));
        }
    }
    Ok(())
}
