//! Numbers, texts and lists of a GGUF header, read with distrust: nothing is allocated that the
//! rest of the file could not fill.

use crate::base::{Error, Result};
use std::io::Read;

/// No real header comes near this; a larger one is damage or malice.
const MAX_HEADER: u64 = 64 << 20;
/// Texts longer than this are no keys, names or tokens; a chat template is far shorter.
const MAX_TEXT: u64 = 16 << 20;

/// A value of the metadata. Whole numbers keep their sign, whatever their width.
#[derive(Debug, Clone, PartialEq)]
pub enum Value {
    Whole(i128),
    Number(f64),
    Bool(bool),
    Text(String),
    List(List),
}

/// A list of the metadata: all of one type.
#[derive(Debug, Clone, PartialEq)]
pub enum List {
    Whole(Vec<i64>),
    Numbers(Vec<f32>),
    Bools(Vec<bool>),
    Texts(Vec<String>),
}

/// The types of the metadata, by their numbers in a file.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Type {
    U8,
    I8,
    U16,
    I16,
    U32,
    I32,
    F32,
    Bool,
    Text,
    List,
    U64,
    I64,
    F64,
}

impl Type {
    fn of(number: u32) -> Option<Self> {
        const ALL: [Type; 13] = [
            Type::U8,
            Type::I8,
            Type::U16,
            Type::I16,
            Type::U32,
            Type::I32,
            Type::F32,
            Type::Bool,
            Type::Text,
            Type::List,
            Type::U64,
            Type::I64,
            Type::F64,
        ];
        ALL.get(number as usize).copied()
    }

    /// The fewest bytes that a value takes.
    fn least(self) -> u64 {
        match self {
            Self::U8 | Self::I8 | Self::Bool => 1,
            Self::U16 | Self::I16 => 2,
            Self::U32 | Self::I32 | Self::F32 => 4,
            Self::U64 | Self::I64 | Self::F64 | Self::Text => 8,
            Self::List => 12,
        }
    }
}

/// A header being read.
pub(super) struct Reader<R> {
    inner: R,
    /// Bytes read so far.
    at: u64,
    /// Length of the file.
    total: u64,
}

impl<R: Read> Reader<R> {
    pub fn new(inner: R, total: u64) -> Self {
        Self { inner, at: 0, total }
    }

    pub fn at(&self) -> u64 {
        self.at
    }

    fn left(&self) -> u64 {
        self.total - self.at
    }

    fn fill(&mut self, bytes: &mut [u8]) -> Result<()> {
        let wanted = bytes.len() as u64;
        if wanted > self.left() {
            return Err(Error::input(format!(
                "truncated: {wanted} bytes are needed at byte {}, the file has {} in all; copy or download the file again",
                self.at, self.total
            )));
        }
        if self.at + wanted > MAX_HEADER {
            return Err(Error::input(format!(
                "the header has more than {MAX_HEADER} bytes, which no model's has"
            )));
        }
        self.inner.read_exact(bytes).map_err(|e| Error::io("reading a GGUF header", e))?;
        self.at += wanted;
        Ok(())
    }

    fn array<const N: usize>(&mut self) -> Result<[u8; N]> {
        let mut bytes = [0; N];
        self.fill(&mut bytes)?;
        Ok(bytes)
    }

    pub fn u32(&mut self) -> Result<u32> {
        self.array().map(u32::from_le_bytes)
    }

    pub fn u64(&mut self) -> Result<u64> {
        self.array().map(u64::from_le_bytes)
    }

    /// A count of things that take at least `least` bytes each.
    pub fn count(&mut self, what: &str, least: u64) -> Result<usize> {
        let count = self.u64()?;
        if count.checked_mul(least).is_none_or(|bytes| bytes > self.left().min(MAX_HEADER)) {
            return Err(Error::input(format!(
                "a count of {count} {what} cannot be true: {} bytes are left in the file",
                self.left()
            )));
        }
        Ok(count as usize)
    }

    pub fn text(&mut self) -> Result<String> {
        let at = self.at;
        let len = self.u64()?;
        if len > self.left() || len > MAX_TEXT {
            return Err(Error::input(format!(
                "a text of {len} bytes at byte {at} cannot be true: {} are left in the file",
                self.left()
            )));
        }
        let mut bytes = vec![0; len as usize];
        self.fill(&mut bytes)?;
        String::from_utf8(bytes)
            .map_err(|_| Error::input(format!("the text at byte {at} is not UTF-8")))
    }

    /// A type and a value of it.
    pub fn value(&mut self) -> Result<Value> {
        let kind = self.kind()?;
        Ok(match kind {
            Type::Text => Value::Text(self.text()?),
            Type::Bool => Value::Bool(self.bool()?),
            Type::F32 | Type::F64 => Value::Number(self.number(kind)?),
            Type::List => Value::List(self.list()?),
            _ => Value::Whole(self.whole(kind)?),
        })
    }

    fn kind(&mut self) -> Result<Type> {
        let number = self.u32()?;
        Type::of(number)
            .ok_or_else(|| Error::input(format!("type {number} of a value is not known")))
    }

    fn list(&mut self) -> Result<List> {
        let kind = self.kind()?;
        let count = self.count("values", kind.least())?;
        Ok(match kind {
            Type::Text => List::Texts((0..count).map(|_| self.text()).collect::<Result<_>>()?),
            Type::Bool => List::Bools((0..count).map(|_| self.bool()).collect::<Result<_>>()?),
            Type::F32 | Type::F64 => {
                let number = |_| Ok(self.number(kind)? as f32);
                List::Numbers((0..count).map(number).collect::<Result<_>>()?)
            }
            Type::List => return Err(Error::input("lists of lists are not supported")),
            _ => {
                let whole = |_| {
                    let whole = self.whole(kind)?;
                    i64::try_from(whole)
                        .map_err(|_| Error::input(format!("{whole} in a list is out of range")))
                };
                List::Whole((0..count).map(whole).collect::<Result<_>>()?)
            }
        })
    }

    fn bool(&mut self) -> Result<bool> {
        match self.array::<1>()? {
            [0] => Ok(false),
            [1] => Ok(true),
            [other] => Err(Error::input(format!("{other} is neither true nor false"))),
        }
    }

    fn number(&mut self, kind: Type) -> Result<f64> {
        if kind == Type::F64 {
            return self.array().map(f64::from_le_bytes);
        }
        self.array().map(|bytes| f64::from(f32::from_le_bytes(bytes)))
    }

    fn whole(&mut self, kind: Type) -> Result<i128> {
        Ok(match kind {
            Type::U8 => i128::from(u8::from_le_bytes(self.array()?)),
            Type::I8 => i128::from(i8::from_le_bytes(self.array()?)),
            Type::U16 => i128::from(u16::from_le_bytes(self.array()?)),
            Type::I16 => i128::from(i16::from_le_bytes(self.array()?)),
            Type::U32 => i128::from(u32::from_le_bytes(self.array()?)),
            Type::I32 => i128::from(i32::from_le_bytes(self.array()?)),
            Type::I64 => i128::from(i64::from_le_bytes(self.array()?)),
            _ => i128::from(u64::from_le_bytes(self.array()?)),
        })
    }
}
