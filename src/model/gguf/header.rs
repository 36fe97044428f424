//! The header of a GGUF file: every count, length, type and range is checked before a byte of data
//! is touched.

use super::reader::{Reader, Value};
use crate::base::behind::ReadOnce;
use crate::base::{Error, Result};
use crate::model::checkpoint::Stored;
use crate::model::hf::Dtype;
use crate::model::kernels::linear::Encoding;
use std::collections::BTreeMap;
use std::fs::File;
use std::io::{BufReader, Read};
use std::path::Path;

const MAGIC: [u8; 4] = *b"GGUF";
const MAX_DIMENSIONS: u32 = 4;

/// One tensor of a GGUF file.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Tensor {
    pub name: String,
    pub stored: Stored,
    /// In safetensors' order: the last dimension is the fastest. (A file has them reversed.)
    pub shape: Vec<u64>,
    /// From the start of the file.
    pub offset: u64,
    /// In bytes.
    pub len: u64,
}

/// A checked header.
#[derive(Debug, Clone, PartialEq)]
pub struct Gguf {
    pub metadata: BTreeMap<String, Value>,
    pub tensors: Vec<Tensor>,
}

/// ggml's types by number: what is read, and the names of what is not.
fn stored(number: u32) -> Result<Stored, String> {
    Ok(match number {
        0 => Stored::Plain(Dtype::F32),
        1 => Stored::Plain(Dtype::F16),
        30 => Stored::Plain(Dtype::BF16),
        2 => Stored::Blocks(Encoding::Q4_0),
        8 => Stored::Blocks(Encoding::Q8_0),
        12 => Stored::Blocks(Encoding::Q4K),
        14 => Stored::Blocks(Encoding::Q6K),
        other => {
            const OTHERS: [(u32, &str); 20] = [
                (3, "Q4_1"),
                (6, "Q5_0"),
                (7, "Q5_1"),
                (9, "Q8_1"),
                (10, "Q2_K"),
                (11, "Q3_K"),
                (13, "Q5_K"),
                (15, "Q8_K"),
                (16, "IQ2_XXS"),
                (17, "IQ2_XS"),
                (18, "IQ3_XXS"),
                (19, "IQ1_S"),
                (20, "IQ4_NL"),
                (21, "IQ3_S"),
                (22, "IQ2_S"),
                (23, "IQ4_XS"),
                (29, "IQ1_M"),
                (34, "TQ1_0"),
                (35, "TQ2_0"),
                (39, "MXFP4"),
            ];
            let name = OTHERS.iter().find(|(number, _)| *number == other);
            return Err(name.map_or_else(|| format!("number {other}"), |(_, name)| (*name).into()));
        }
    })
}

impl Gguf {
    /// Reads and checks a file's header.
    ///
    /// # Errors
    /// Input, naming the file, and the key or tensor: not GGUF, truncated, counts that cannot be
    /// true, types that are not known, tensors that overlap or leave the file.
    pub fn open(path: &Path) -> Result<Self> {
        let file = File::open(path)
            .map_err(|e| Error::input(format!("cannot open {}", path.display())).from_source(e))?;
        let total =
            file.metadata().map_err(|e| Error::io(format!("reading {}", path.display()), e))?.len();
        parse(BufReader::new(ReadOnce::new(file)), total)
            .map_err(|e| e.with("file", path.display()))
    }
}

/// Checks the header of a file of `total` bytes.
///
/// # Errors
/// As [`Gguf::open`].
pub fn parse(input: impl Read, total: u64) -> Result<Gguf> {
    let mut reader = Reader::new(input, total);
    let magic = reader.u32()?.to_le_bytes();
    if magic != MAGIC {
        return Err(Error::input(format!(
            "not a GGUF file: it begins with {magic:02x?} instead of \"GGUF\""
        )));
    }
    let version = reader.u32()?;
    if !matches!(version, 2 | 3) {
        let why = match version.swap_bytes() {
            2 | 3 => "it is big-endian",
            _ => "known are 2 and 3",
        };
        return Err(Error::input(format!("GGUF version {version} is not supported: {why}")));
    }
    // A tensor has at least its name's length, a dimension count, a type and an offset; a key its
    // length, a type and a value.
    let tensors = reader.count("tensors", 24)?;
    let keys = reader.count("keys", 13)?;
    let metadata = read_metadata(&mut reader, keys)?;
    let alignment = match metadata.get("general.alignment") {
        None => 32,
        Some(Value::Whole(n)) if (1..=1 << 20).contains(n) && n.count_ones() == 1 => *n as u64,
        Some(other) => {
            return Err(Error::input(format!(
                "key \"general.alignment\" = {other:?} is no power of two up to 2^20"
            )));
        }
    };
    let mut list = Vec::new();
    for _ in 0..tensors {
        list.push(read_tensor(&mut reader)?);
    }
    place(&mut list, reader.at().next_multiple_of(alignment), alignment, total)?;
    Ok(Gguf { metadata, tensors: list })
}

fn read_metadata(reader: &mut Reader<impl Read>, keys: usize) -> Result<BTreeMap<String, Value>> {
    let mut metadata = BTreeMap::new();
    for number in 0..keys {
        let key = reader.text().map_err(|e| e.with("key_number", number))?;
        let value = reader.value().map_err(|e| e.with("key", shown(&key)))?;
        if metadata.contains_key(&key) {
            return Err(Error::input("key is given twice").with("key", shown(&key)));
        }
        metadata.insert(key, value);
    }
    Ok(metadata)
}

/// One entry; its offset still counts from the start of the data.
fn read_tensor(reader: &mut Reader<impl Read>) -> Result<Tensor> {
    let name = reader.text()?;
    let entry = |reader: &mut Reader<_>| {
        let dimensions = reader.u32()?;
        if dimensions == 0 || dimensions > MAX_DIMENSIONS {
            return Err(Error::input(format!(
                "tensor has {dimensions} dimensions, known are 1 to {MAX_DIMENSIONS}"
            )));
        }
        let mut shape = (0..dimensions).map(|_| reader.u64()).collect::<Result<Vec<_>>>()?;
        shape.reverse();
        let number = reader.u32()?;
        let stored = stored(number).map_err(|kind| {
            Error::input(format!(
                "tensor is of ggml type {kind}, which is not supported; known are F32, F16, BF16, \
                 Q8_0, Q4_0, Q4_K and Q6_K"
            ))
        })?;
        let offset = reader.u64()?;
        let len = bytes(stored, &shape)?;
        Ok((stored, shape, offset, len))
    };
    match entry(reader) {
        Ok((stored, shape, offset, len)) => Ok(Tensor { name, stored, shape, offset, len }),
        Err(e) => Err(e.with("tensor", shown(&name))),
    }
}

fn bytes(stored: Stored, shape: &[u64]) -> Result<u64> {
    let beyond = || Error::input(format!("shape {shape:?} has more elements than any file"));
    let cols = shape.last().copied().unwrap_or(0);
    let mut rows = shape[..shape.len().saturating_sub(1)].iter();
    let rows = rows.try_fold(1u64, |n, dim| n.checked_mul(*dim)).ok_or_else(beyond)?;
    let encoding = stored.encoding().ok_or_else(|| Error::bug("a ggml type holds no weights"))?;
    let cols = usize::try_from(cols).map_err(|_| beyond())?;
    (encoding.row_bytes(cols)? as u64).checked_mul(rows).ok_or_else(beyond)
}

/// Turns offsets into places in the file, after checking that tensors follow each other, each
/// padded to the alignment, as every writer lays them out.
fn place(tensors: &mut [Tensor], start: u64, alignment: u64, total: u64) -> Result<()> {
    tensors.sort_by(|a, b| a.offset.cmp(&b.offset).then(a.len.cmp(&b.len)));
    let mut next = 0u64;
    for tensor in &mut *tensors {
        let bad = |message: String| Error::input(message).with("tensor", shown(&tensor.name));
        if tensor.offset != next {
            let what =
                if tensor.offset < next { "overlaps another" } else { "leaves a hole before it" };
            return Err(bad(format!("data at {} {what}", tensor.offset)));
        }
        let end = start.checked_add(tensor.offset).and_then(|at| at.checked_add(tensor.len));
        if end.is_none_or(|end| end > total) {
            return Err(bad(format!(
                "truncated: {} bytes at {} exceed the {} bytes of data; copy or download the file again",
                tensor.len,
                tensor.offset,
                total.saturating_sub(start)
            )));
        }
        next = (tensor.offset + tensor.len).next_multiple_of(alignment);
        tensor.offset += start;
    }
    let mut names: Vec<&str> = tensors.iter().map(|tensor| tensor.name.as_str()).collect();
    names.sort_unstable();
    match names.windows(2).find(|pair| pair[0] == pair[1]) {
        Some(pair) => Err(Error::input("name is given twice").with("tensor", shown(pair[0]))),
        None => Ok(()),
    }
}

/// A name fit for a message, however long or strange it is.
fn shown(name: &str) -> String {
    name.chars().take(120).collect::<String>().escape_debug().to_string()
}
