//! An opened checkpoint: its headers are read and checked, its weights lie where they lay.

use super::entries::{Entries, Origin};
use super::experts::{Expert, Experts};
use super::layout::Layout;
use super::stored::OWN_SCALES;
use super::table::{Piece, Table};
use super::{experts, folder, identity, store};
use crate::base::behind::without_read_ahead;
use crate::base::{Error, Result};
use crate::model::config::ModelConfig;
use crate::model::family::{dense_tensors, is_skipped};
use crate::model::gguf::{self, Gguf};
use crate::model::hf::config::generation_config;
use crate::model::kernels::linear::ExpertWeights;
use crate::text::chat::ChatTemplate;
use crate::text::tokenizer::Tokenizer;
use std::collections::HashSet;
use std::fs::File;
use std::path::{Path, PathBuf};
use std::time::SystemTime;

/// An opened checkpoint.
#[derive(Debug)]
pub struct Source {
    root: PathBuf,
    origin: Origin,
    config: ModelConfig,
    /// Every tensor outside the experts, and whatever else the files hold.
    table: Table,
    experts: Experts,
    handles: Vec<File>,
    identity: String,
}

impl Source {
    /// Opens a Hugging Face folder, a `.gguf` file, or a folder that `semoe import` wrote. Reads
    /// headers only.
    ///
    /// # Errors
    /// Input, naming file and tensor: no checkpoint, a damaged header, another family, a tensor
    /// that is missing, misshapen, of an unknown type, or of no use to the model.
    pub fn open(path: &Path) -> Result<Self> {
        if path.is_file() {
            let gguf = Gguf::open(path)?;
            let named = |e: Error| e.with("file", path.display());
            let config = gguf::config(&gguf).map_err(named)?;
            let table = gguf::table(&gguf, &config, path)?;
            return Self::new(path, Origin::Gguf, config, table);
        }
        if path.join(store::INDEX).exists() {
            return Self::from_entries(path, store::read_entries(path)?);
        }
        if !path.is_dir() {
            return Err(Error::input(format!(
                "no checkpoint at {}: give a folder with config.json and safetensors, or a .gguf \
                 file",
                path.display()
            )));
        }
        let config = ModelConfig::from_hf(path)?;
        Self::new(path, Origin::Folder, config, folder::table(path)?)
    }

    fn new(root: &Path, origin: Origin, config: ModelConfig, mut table: Table) -> Result<Self> {
        let experts = Experts::find(&table, &config)?;
        check_nothing_is_left(&table, &config)?;
        let of_experts: HashSet<String> = experts::names(&config)?.into_iter().collect();
        // Their pieces say all that is needed of them.
        table.tensors.retain(|name, _| {
            !of_experts.contains(scaled_by(name).unwrap_or(name)) && !is_skipped(&config, name)
        });
        let identity = identity::of(&table.files, folder_of(root, origin))?;
        Self::finish(root, origin, config, table, experts, identity)
    }

    fn finish(
        root: &Path,
        origin: Origin,
        config: ModelConfig,
        table: Table,
        experts: Experts,
        identity: String,
    ) -> Result<Self> {
        for tensor in dense_tensors(&config) {
            table.weight(&tensor.name, &tensor.shape)?;
        }
        let open = |file: &PathBuf| -> Result<File> {
            let opened = File::open(file)
                .map_err(|e| Error::io(format!("cannot open {}", file.display()), e))?;
            without_read_ahead(&opened);
            Ok(opened)
        };
        let handles = table.files.iter().map(open).collect::<Result<_>>()?;
        Ok(Self { root: root.to_owned(), origin, config, table, experts, handles, identity })
    }

    /// The checkpoint written down, for an index.
    pub fn entries(&self) -> Entries {
        let identity = self.identity.clone();
        Entries::write(self.origin, identity, &self.config, &self.table, &self.experts)
    }

    /// Opens a checkpoint that was written down, without reading its headers.
    ///
    /// # Errors
    /// Corrupt for entries that are damaged or files that are no longer those that were opened:
    /// [`Source::open`] reads them afresh.
    pub fn from_entries(path: &Path, entries: Entries) -> Result<Self> {
        let origin = entries.meta.origin;
        let folder = folder_of(path, origin);
        let (meta, table, experts) =
            entries.read(folder.or(path.parent()).unwrap_or(Path::new(".")))?;
        let identity = identity::of(&table.files, folder)?;
        // A store's own index does not know what will lie beside it.
        if !meta.identity.is_empty() && identity != meta.identity {
            let message = "the checkpoint's files are not those that were opened";
            return Err(Error::corrupt(message).with("path", path.display()));
        }
        check_lengths(&table, &experts)?;
        Self::finish(path, origin, meta.config, table, experts, identity)
    }

    /// The folder or file that was opened.
    pub fn path(&self) -> &Path {
        &self.root
    }

    pub fn config(&self) -> &ModelConfig {
        &self.config
    }

    /// The files that hold tensors; a [`Piece`] counts them from 0.
    pub fn files(&self) -> &[PathBuf] {
        &self.table.files
    }

    /// Where the tensors outside the experts lie.
    pub fn table(&self) -> &Table {
        &self.table
    }

    /// A text that changes when a file changes: names, lengths, times, inodes.
    pub fn identity(&self) -> &str {
        &self.identity
    }

    /// What a fetch of an expert reads, in a fixed order. Empty where there is no such expert.
    pub fn pieces(&self, layer: usize, expert: usize) -> &[Piece] {
        self.find(layer, expert).map_or(&[], |expert| expert.pieces.as_slice())
    }

    /// An expert's matrices over the bytes of its pieces.
    ///
    /// # Errors
    /// Bug when there is no such expert or the bytes are not those of its pieces.
    pub fn expert<'a>(
        &self,
        layer: usize,
        expert: usize,
        pieces: &[&'a [u8]],
    ) -> Result<ExpertWeights<'a>> {
        self.layout(layer, expert)?.view(pieces, self.config.activation)
    }

    fn find(&self, layer: usize, expert: usize) -> Option<&Expert> {
        self.experts.layers.get(layer)?.get(expert)
    }

    /// How the matrices of an expert lie in its pieces.
    ///
    /// # Errors
    /// Bug when there is no such expert.
    pub fn layout(&self, layer: usize, expert: usize) -> Result<&Layout> {
        self.find(layer, expert).map(|expert| &*expert.layout).ok_or_else(|| {
            Error::bug("there is no such expert").with("layer", layer).with("expert", expert)
        })
    }

    pub fn origin(&self) -> Origin {
        self.origin
    }

    pub(super) fn experts(&self) -> &Experts {
        &self.experts
    }

    pub(super) fn handles(&self) -> &[File] {
        &self.handles
    }

    /// The checkpoint's tokenizer.
    ///
    /// # Errors
    /// Input: missing, malformed, or with ids that the model has no embedding for.
    pub fn tokenizer(&self) -> Result<Tokenizer> {
        let tokenizer = match self.origin {
            Origin::Gguf => {
                let vocabulary = gguf::vocabulary(&Gguf::open(&self.root)?);
                vocabulary.and_then(|vocabulary| vocabulary.tokenizer())
            }
            Origin::Folder | Origin::Store => Tokenizer::load(&self.root),
        }
        .map_err(|e| e.with("checkpoint", self.root.display()))?;
        let (ids, vocab) = (tokenizer.vocab_size(), self.config.vocab);
        if ids > vocab {
            return Err(Error::input(format!(
                "the tokenizer does not fit the model: it has {ids} ids, the model {vocab}"
            ))
            .with("folder", self.root.display()));
        }
        Ok(tokenizer)
    }

    /// Whether the checkpoint carries a tokenizer.
    pub fn has_tokenizer(&self) -> bool {
        match self.origin {
            Origin::Gguf => Gguf::open(&self.root)
                .is_ok_and(|gguf| gguf.metadata.contains_key("tokenizer.ggml.tokens")),
            Origin::Folder | Origin::Store => self.root.join("tokenizer.json").exists(),
        }
    }

    /// The chat template, if there is one; `now` is what it is told when it asks for the date.
    ///
    /// # Errors
    /// Input when it cannot be read.
    pub fn chat_template(
        &self,
        tokenizer: &Tokenizer,
        now: SystemTime,
    ) -> Result<Option<ChatTemplate>> {
        match self.origin {
            Origin::Gguf => ChatTemplate::of_tokenizer(tokenizer, now),
            Origin::Folder | Origin::Store => ChatTemplate::load(&self.root, tokenizer, now),
        }
    }

    /// `generation_config.json`, if there is one; of a GGUF file what its metadata says of it.
    ///
    /// # Errors
    /// Input when it is not JSON.
    pub fn generation_config(&self) -> Result<Option<serde_json::Value>> {
        if self.origin == Origin::Gguf {
            return Ok(Some(generation_config(&self.config)));
        }
        crate::base::file::read_json(&self.root.join("generation_config.json"))
    }
}

/// The folder whose files beside the tensors belong to the checkpoint.
fn folder_of(root: &Path, origin: Origin) -> Option<&Path> {
    (origin != Origin::Gguf).then_some(root)
}

/// The weight whose scales are named `name`.
fn scaled_by(name: &str) -> Option<&str> {
    name.strip_suffix("_scale_inv").or(name.strip_suffix(OWN_SCALES))
}

/// Whether every block lies inside its file.
fn check_lengths(table: &Table, experts: &Experts) -> Result<()> {
    let mut lengths = Vec::with_capacity(table.files.len());
    for file in &table.files {
        let meta = std::fs::metadata(file)
            .map_err(|e| Error::input(format!("cannot open {}", file.display())).from_source(e))?;
        lengths.push(meta.len());
    }
    let dense = table.tensors.values().map(|place| place.piece);
    let experts = experts.layers.iter().flatten().flat_map(|expert| expert.pieces.iter().copied());
    for piece in dense.chain(experts) {
        if piece.offset + piece.len > lengths[piece.file] {
            return Err(Error::input(format!(
                "truncated: the file has {} bytes, a block ends at {}",
                lengths[piece.file],
                piece.offset + piece.len
            ))
            .with("file", table.files[piece.file].display()));
        }
    }
    Ok(())
}

/// Refuses tensors that the model would not use: a bias that is left out changes the mathematics.
fn check_nothing_is_left(table: &Table, config: &ModelConfig) -> Result<()> {
    let mut used: HashSet<String> = experts::names(config)?.into_iter().collect();
    used.extend(dense_tensors(config).into_iter().map(|tensor| tensor.name));
    // A copy of the embedding, which some writers keep beside tied weights.
    used.insert("lm_head.weight".into());
    for (name, place) in &table.tensors {
        let fine = used.contains(scaled_by(name).unwrap_or(name))
            || used.contains(name)
            || is_skipped(config, name)
            || name.ends_with("rotary_emb.inv_freq");
        if !fine {
            let message = format!(
                "tensor of shape {:?} is not known for family {} and may change the mathematics, \
                 so the checkpoint is refused",
                place.shape, config.family
            );
            return Err(table.named(Error::input(message), name, place));
        }
    }
    Ok(())
}
