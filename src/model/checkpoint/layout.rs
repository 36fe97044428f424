//! How the matrices of one expert lie in the pieces that a fetch brings.
//!
//! Decided once a model when it is opened; a decode step only turns a layout and bytes into views.

use super::stored::Stored;
use crate::base::{Error, Result};
use crate::model::kernels::linear::{
    Activation, Encoding, ExpertWeights, GateUp, Matrix, Projection, Vector,
};
use serde::{Deserialize, Serialize};

/// A range of bytes of one piece.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub struct Span {
    /// Index of the piece in the expert's list.
    pub piece: usize,
    pub start: usize,
    pub len: usize,
}

/// One matrix [rows, cols], with its scales and the bias of its outputs.
#[derive(Debug, Clone, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub struct MatrixAt {
    #[serde(with = "by_name")]
    pub encoding: Encoding,
    pub rows: usize,
    pub cols: usize,
    /// The bytes are [cols, rows].
    pub transposed: bool,
    pub data: Span,
    pub scales: Option<Span>,
    pub bias: Option<BiasAt>,
}

#[derive(Debug, Clone, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub struct BiasAt {
    #[serde(with = "by_name")]
    pub encoding: Encoding,
    pub span: Span,
}

/// How gate and up lie.
#[derive(Debug, Clone, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub enum GateUpAt {
    Apart {
        gate: MatrixAt,
        up: MatrixAt,
    },
    /// Row 2f is gate's, row 2f + 1 up's (gpt-oss).
    Interleaved(MatrixAt),
}

/// One expert.
#[derive(Debug, Clone, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub struct Layout {
    pub gate_up: GateUpAt,
    pub down: MatrixAt,
}

impl Layout {
    /// The matrices in their order: gate, up, down, or both in one, down.
    pub fn matrices(&self) -> Vec<&MatrixAt> {
        match &self.gate_up {
            GateUpAt::Apart { gate, up } => vec![gate, up, &self.down],
            GateUpAt::Interleaved(both) => vec![both, &self.down],
        }
    }

    /// As [`Layout::matrices`], to be changed.
    pub(super) fn matrices_mut(&mut self) -> Vec<&mut MatrixAt> {
        match &mut self.gate_up {
            GateUpAt::Apart { gate, up } => vec![gate, up, &mut self.down],
            GateUpAt::Interleaved(both) => vec![both, &mut self.down],
        }
    }

    /// The expert over the bytes of its pieces.
    ///
    /// # Errors
    /// Bug when the pieces are not those that the layout was made for.
    pub fn view<'a>(
        &self,
        pieces: &[&'a [u8]],
        activation: Activation,
    ) -> Result<ExpertWeights<'a>> {
        let gate_up = match &self.gate_up {
            GateUpAt::Apart { gate, up } => {
                GateUp::Apart { gate: gate.view(pieces)?, up: up.view(pieces)? }
            }
            GateUpAt::Interleaved(both) => GateUp::Interleaved(both.view(pieces)?),
        };
        Ok(ExpertWeights { gate_up, down: self.down.view(pieces)?, activation })
    }
}

impl MatrixAt {
    pub(super) fn view<'a>(&self, pieces: &[&'a [u8]]) -> Result<Projection<'a>> {
        let matrix = Matrix {
            encoding: self.encoding,
            rows: self.rows,
            cols: self.cols,
            transposed: self.transposed,
            data: self.data.of(pieces)?,
            scales: self.scales.map_or(Ok(&[][..]), |span| span.of(pieces))?,
        };
        matrix.check()?;
        let bias = match &self.bias {
            None => None,
            Some(bias) => Some(Vector { encoding: bias.encoding, data: bias.span.of(pieces)? }),
        };
        Ok(Projection { matrix, bias })
    }

    /// All spans, to be changed.
    pub(super) fn spans_mut(&mut self) -> Vec<&mut Span> {
        let bias = self.bias.as_mut().map(|bias| &mut bias.span);
        [Some(&mut self.data), self.scales.as_mut(), bias].into_iter().flatten().collect()
    }

    /// Where its bytes lie.
    pub fn spans(&self) -> Vec<Span> {
        let bias = self.bias.as_ref().map(|bias| bias.span);
        [Some(self.data), self.scales, bias].into_iter().flatten().collect()
    }
}

impl Span {
    /// The range inside its piece.
    pub fn range(self) -> std::ops::Range<usize> {
        self.start..self.start + self.len
    }

    /// Its bytes.
    pub(super) fn of<'a>(self, pieces: &[&'a [u8]]) -> Result<&'a [u8]> {
        let piece = pieces.get(self.piece).copied();
        let bytes =
            piece.and_then(|piece| piece.get(self.start..self.start.checked_add(self.len)?));
        bytes.ok_or_else(|| {
            Error::bug("an expert's pieces are not those that its layout was made for")
                .with("piece", self.piece)
                .with("range", format!("{}+{}", self.start, self.len))
        })
    }
}

/// Encodings by the names of their types.
mod by_name {
    use super::{Encoding, Stored};
    use serde::{Deserialize, Deserializer, Serializer, de::Error};

    pub fn serialize<S: Serializer>(encoding: &Encoding, s: S) -> Result<S::Ok, S::Error> {
        s.collect_str(&Stored::of(*encoding))
    }

    pub fn deserialize<'de, D: Deserializer<'de>>(d: D) -> Result<Encoding, D::Error> {
        let name = String::deserialize(d)?;
        let stored: Stored = name.parse().map_err(D::Error::custom)?;
        stored.encoding().ok_or_else(|| D::Error::custom(format!("{name} holds no weights")))
    }
}
