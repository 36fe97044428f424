//! The header of a safetensors file, read with distrust: every length, range, type and name is
//! checked before a byte of data is touched.
//!
//! Layout: u64 little-endian length n, n bytes of JSON, then the data
//! (<https://github.com/huggingface/safetensors#format>).

use crate::base::behind::give_back;
use crate::base::{Error, Result};
use serde::de::{Deserializer, IgnoredAny, MapAccess, Visitor};
use serde::{Deserialize, Serialize};
use std::fmt;
use std::fs::File;
use std::os::unix::fs::FileExt;
use std::path::Path;

/// No real header comes near this; a larger length is damage or malice.
const MAX_HEADER: u64 = 100 << 20;

/// Element types of the format. The library computes with the float types; the others are
/// known so that their ranges can be checked.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[expect(non_camel_case_types, reason = "the names that the format gives them")]
pub enum Dtype {
    BOOL,
    U8,
    I8,
    F8_E5M2,
    F8_E4M3,
    I16,
    U16,
    F16,
    BF16,
    I32,
    U32,
    F32,
    F64,
    I64,
    U64,
}

impl Dtype {
    pub fn bytes(self) -> u64 {
        match self {
            Self::BOOL | Self::U8 | Self::I8 | Self::F8_E5M2 | Self::F8_E4M3 => 1,
            Self::I16 | Self::U16 | Self::F16 | Self::BF16 => 2,
            Self::I32 | Self::U32 | Self::F32 => 4,
            Self::F64 | Self::I64 | Self::U64 => 8,
        }
    }
}

/// Where a tensor lies in its file.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct TensorInfo {
    pub name: String,
    pub dtype: Dtype,
    pub shape: Vec<u64>,
    /// Absolute byte offset in the file; any alignment.
    pub offset: u64,
    /// Length in bytes.
    pub len: u64,
}

impl TensorInfo {
    pub fn elements(&self) -> u64 {
        self.len / self.dtype.bytes()
    }
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct Entry {
    dtype: Dtype,
    shape: Vec<u64>,
    data_offsets: [u64; 2],
}

/// The header's entries in file order. A map type would hide a name that is given twice.
struct Entries(Vec<(String, Entry)>);

impl<'de> Deserialize<'de> for Entries {
    fn deserialize<D: Deserializer<'de>>(d: D) -> std::result::Result<Self, D::Error> {
        struct EntriesVisitor;
        impl<'de> Visitor<'de> for EntriesVisitor {
            type Value = Entries;

            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str("an object of tensors")
            }

            fn visit_map<A: MapAccess<'de>>(
                self,
                mut map: A,
            ) -> std::result::Result<Entries, A::Error> {
                let mut entries = Vec::new();
                while let Some(name) = map.next_key::<String>()? {
                    if name == "__metadata__" {
                        map.next_value::<IgnoredAny>()?;
                        continue;
                    }
                    let entry = map.next_value::<Entry>().map_err(|e| {
                        serde::de::Error::custom(format!("tensor \"{}\": {e}", shown(&name)))
                    })?;
                    entries.push((name, entry));
                }
                Ok(Entries(entries))
            }
        }
        d.deserialize_map(EntriesVisitor)
    }
}

/// A name fit for a message, however long or strange it is.
fn shown(name: &str) -> String {
    name.chars().take(120).collect::<String>().escape_debug().to_string()
}

/// What to do about a file that was cut or damaged.
const AGAIN: &str = "; copy or download the file again";

/// Reads and checks the header of `file`; `path` is for messages.
///
/// # Errors
/// Input, naming the file and the tensor: lengths past the end of the file, ranges that overlap,
/// leave holes or do not fit shape and type, names given twice, unknown types.
pub fn read(file: &File, path: &Path) -> Result<Vec<TensorInfo>> {
    let io = |e| Error::io(format!("reading {}", path.display()), e);
    let total = file.metadata().map_err(io)?.len();
    let bad = |message: String| Error::input(message).with("file", path.display());
    if total < 8 {
        return Err(bad(format!(
            "truncated: a safetensors file has at least 8 bytes, not {total}{AGAIN}"
        )));
    }
    let mut prefix = [0u8; 8];
    file.read_exact_at(&mut prefix, 0).map_err(io)?;
    let length = u64::from_le_bytes(prefix);
    if length > MAX_HEADER {
        return Err(bad(format!("header length of {length} bytes is out of range{AGAIN}")));
    }
    if length > total - 8 {
        return Err(bad(format!(
            "truncated: the header should have {length} bytes, the file has {} after its length{AGAIN}",
            total - 8
        )));
    }
    let mut json = vec![0u8; length as usize];
    file.read_exact_at(&mut json, 8).map_err(io)?;
    // What was read ahead is tensors, of which none may be wanted.
    give_back(file, None);
    parse(&json, total - 8 - length, 8 + length).map_err(|e| e.with("file", path.display()))
}

/// Checks header text against `data` bytes of data that start at `start` in the file.
pub fn parse(json: &[u8], data: u64, start: u64) -> Result<Vec<TensorInfo>> {
    let Entries(entries) = serde_json::from_slice(json)
        .map_err(|e| Error::input("safetensors header is malformed").from_source(e))?;
    let mut tensors = Vec::with_capacity(entries.len());
    for (name, entry) in entries {
        let bad = |message: String| Error::input(message).with("tensor", shown(&name));
        let [begin, end] = entry.data_offsets;
        if begin > end {
            return Err(bad(format!("data range {begin}..{end} runs backwards")));
        }
        if end > data {
            return Err(bad(format!(
                "truncated: data range {begin}..{end} exceeds the {data} bytes of data{AGAIN}"
            )));
        }
        let elements = entry.shape.iter().try_fold(1u64, |n, dim| n.checked_mul(*dim));
        let bytes = elements.and_then(|n| n.checked_mul(entry.dtype.bytes()));
        if bytes != Some(end - begin) {
            return Err(bad(format!(
                "shape {:?} of {:?} does not fit its {} bytes",
                entry.shape,
                entry.dtype,
                end - begin
            )));
        }
        let (dtype, shape) = (entry.dtype, entry.shape);
        tensors.push(TensorInfo { name, dtype, shape, offset: start + begin, len: end - begin });
    }
    tensors.sort_by_key(|tensor| (tensor.offset, tensor.len));
    let mut next = start;
    for tensor in &tensors {
        if tensor.offset != next {
            let what =
                if tensor.offset < next { "overlaps another" } else { "leaves a hole before it" };
            return Err(
                Error::input(format!("data range {what}")).with("tensor", shown(&tensor.name))
            );
        }
        next = tensor.offset + tensor.len;
    }
    if next != start + data {
        return Err(Error::input(format!(
            "{} bytes of data belong to no tensor",
            start + data - next
        )));
    }
    tensors.sort_by(|a, b| a.name.cmp(&b.name));
    if let Some(pair) = tensors.windows(2).find(|pair| pair[0].name == pair[1].name) {
        return Err(Error::input("name is given twice").with("tensor", shown(&pair[0].name)));
    }
    Ok(tensors)
}
