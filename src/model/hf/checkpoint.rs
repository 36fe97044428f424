//! Reading tensors of a checkpoint folder by name.

use super::header::{self, Dtype, TensorInfo};
use crate::base::behind::{give_back, read_piece};
use crate::base::{Error, Result};
use serde::Deserialize;
use std::collections::{BTreeMap, HashMap};
use std::fs::File;
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};

/// Bytes converted at a time, so that reading needs no second copy of a tensor.
const PIECE: usize = 1 << 20;

/// An opened checkpoint folder; its headers have been checked, its data is read on demand.
#[derive(Debug)]
pub struct Checkpoint {
    dir: PathBuf,
    files: Vec<(PathBuf, File)>,
    tensors: HashMap<String, (usize, TensorInfo)>,
}

#[derive(Deserialize)]
struct Index {
    weight_map: BTreeMap<String, String>,
}

impl Checkpoint {
    /// Opens `model.safetensors.index.json` with its shards, or `model.safetensors`.
    ///
    /// # Errors
    /// Input, naming file and tensor: nothing to open, an index that points outside the folder
    /// or at tensors that are not there, or a damaged header.
    pub fn open(dir: &Path) -> Result<Self> {
        let index_path = dir.join("model.safetensors.index.json");
        let mut checkpoint =
            Self { dir: dir.to_owned(), files: Vec::new(), tensors: HashMap::new() };
        if index_path.exists() {
            checkpoint.open_sharded(&index_path)?;
            return Ok(checkpoint);
        }
        let single = dir.join("model.safetensors");
        if !single.exists() {
            return Err(Error::input(format!(
                "{} holds no checkpoint: model.safetensors and model.safetensors.index.json are \
                 both missing",
                dir.display()
            )));
        }
        let found = checkpoint.add_file(single)?;
        let file = checkpoint.files.len() - 1;
        for info in found {
            checkpoint.tensors.insert(info.name.clone(), (file, info));
        }
        Ok(checkpoint)
    }

    fn open_sharded(&mut self, index_path: &Path) -> Result<()> {
        let bad = |message: String| Error::input(message).with("file", index_path.display());
        let text = std::fs::read(index_path)
            .map_err(|e| Error::io(format!("reading {}", index_path.display()), e))?;
        let index: Index = serde_json::from_slice(&text)
            .map_err(|e| bad("shard index is malformed".into()).from_source(e))?;
        let mut by_file: BTreeMap<&str, Vec<&str>> = BTreeMap::new();
        for (tensor, file) in &index.weight_map {
            let plain = Path::new(file).file_name().is_some_and(|name| name == file.as_str());
            if !plain {
                return Err(bad(format!("shard \"{file}\" is not a plain file name"))
                    .with("tensor", tensor));
            }
            by_file.entry(file).or_default().push(tensor);
        }
        for (name, wanted) in by_file {
            let path = self.dir.join(name);
            let mut found: HashMap<String, TensorInfo> = self
                .add_file(path.clone())?
                .into_iter()
                .map(|info| (info.name.clone(), info))
                .collect();
            let file = self.files.len() - 1;
            for tensor in wanted {
                let info = found.remove(tensor).ok_or_else(|| {
                    Error::input("the shard index names a tensor that its file does not hold")
                        .with("tensor", tensor)
                        .with("file", path.display())
                })?;
                self.tensors.insert(info.name.clone(), (file, info));
            }
        }
        Ok(())
    }

    fn add_file(&mut self, path: PathBuf) -> Result<Vec<TensorInfo>> {
        let file = File::open(&path)
            .map_err(|e| Error::input(format!("cannot open {}", path.display())).from_source(e))?;
        let tensors = header::read(&file, &path)?;
        self.files.push((path, file));
        Ok(tensors)
    }

    pub fn dir(&self) -> &Path {
        &self.dir
    }

    /// The files that hold tensors.
    pub fn files(&self) -> Vec<PathBuf> {
        self.files.iter().map(|(path, _)| path.clone()).collect()
    }

    /// Every tensor with the index of its file, in no order.
    pub fn tensors(&self) -> impl Iterator<Item = (usize, &TensorInfo)> {
        self.tensors.values().map(|(file, info)| (*file, info))
    }

    /// Names of all tensors, sorted.
    pub fn names(&self) -> Vec<&str> {
        let mut names: Vec<_> = self.tensors.keys().map(String::as_str).collect();
        names.sort_unstable();
        names
    }

    pub fn contains(&self, name: &str) -> bool {
        self.tensors.contains_key(name)
    }

    /// A tensor's file and place.
    ///
    /// # Errors
    /// Input if the checkpoint has no such tensor.
    pub fn info(&self, name: &str) -> Result<(&Path, &TensorInfo)> {
        let (file, info) = self.tensors.get(name).ok_or_else(|| {
            Error::input("tensor is missing from the checkpoint")
                .with("tensor", name)
                .with("folder", self.dir.display())
        })?;
        Ok((&self.files[*file].0, info))
    }

    /// Checks that `name` is there with `shape` in a type that can be read as f32.
    pub fn expect(&self, name: &str, shape: &[usize]) -> Result<()> {
        let (path, info) = self.info(name)?;
        let same = info.shape.len() == shape.len()
            && info.shape.iter().zip(shape).all(|(found, want)| *found == *want as u64);
        if !same {
            return Err(Error::input(format!(
                "tensor has shape {:?} where config.json asks for {shape:?}",
                info.shape
            ))
            .with("tensor", name)
            .with("file", path.display()));
        }
        if !matches!(info.dtype, Dtype::F32 | Dtype::BF16 | Dtype::F16) {
            return Err(Error::input(format!(
                "tensor of type {:?} cannot be read, only F32, BF16 and F16 can",
                info.dtype
            ))
            .with("tensor", name)
            .with("file", path.display()));
        }
        Ok(())
    }

    /// Reads a tensor of f32, bf16 or f16 into `out`, whose length must be its element count.
    ///
    /// # Errors
    /// Input for a missing tensor, another element count or type; Io if the disk fails.
    pub fn read_f32(&self, name: &str, out: &mut [f32]) -> Result<()> {
        let (path, info) = self.info(name)?;
        let context = |e: Error| e.with("tensor", name).with("file", path.display());
        if info.elements() != out.len() as u64 {
            return Err(context(Error::input(format!(
                "tensor has {} elements where {} are needed",
                info.elements(),
                out.len()
            ))));
        }
        let width = info.dtype.bytes() as usize;
        let file = &self.files[self.tensors[name].0].1;
        let mut bytes = vec![0u8; PIECE.min(out.len() * width)];
        let mut offset = info.offset;
        for piece in out.chunks_mut((PIECE / width).max(1)) {
            let bytes = &mut bytes[..piece.len() * width];
            file.read_exact_at(bytes, offset)
                .map_err(|e| context(Error::io("reading a tensor", e)))?;
            offset += bytes.len() as u64;
            decode(info.dtype, bytes, piece).map_err(context)?;
        }
        // A tensor is read once.
        give_back(file, None);
        Ok(())
    }

    /// Reads a tensor as it lies in its file; `out` must have its length.
    ///
    /// # Errors
    /// Input for a missing tensor or another length; Io if the disk fails.
    pub fn read_bytes(&self, name: &str, out: &mut [u8]) -> Result<()> {
        let (path, info) = self.info(name)?;
        let context = |e: Error| e.with("tensor", name).with("file", path.display());
        if info.len != out.len() as u64 {
            return Err(context(Error::input(format!(
                "tensor has {} bytes where {} are needed",
                info.len,
                out.len()
            ))));
        }
        read_piece(&self.files[self.tensors[name].0].1, out, info.offset)
            .map_err(|e| context(Error::io("reading a tensor", e)))
    }

    /// Reads a tensor of i64.
    pub fn read_i64(&self, name: &str) -> Result<Vec<i64>> {
        let (path, info) = self.info(name)?;
        let context = |e: Error| e.with("tensor", name).with("file", path.display());
        if info.dtype != Dtype::I64 {
            let message = format!("tensor is of type {:?}, not I64", info.dtype);
            return Err(context(Error::input(message)));
        }
        let mut bytes = vec![0u8; info.len as usize];
        self.files[self.tensors[name].0]
            .1
            .read_exact_at(&mut bytes, info.offset)
            .map_err(|e| context(Error::io("reading a tensor", e)))?;
        Ok(bytes.as_chunks::<8>().0.iter().map(|b| i64::from_le_bytes(*b)).collect())
    }

    /// Opens one safetensors file that is not a model's, such as reference outputs.
    pub fn open_file(path: &Path) -> Result<Self> {
        let dir = path.parent().unwrap_or(Path::new(".")).to_owned();
        let mut checkpoint = Self { dir, files: Vec::new(), tensors: HashMap::new() };
        for info in checkpoint.add_file(path.to_owned())? {
            checkpoint.tensors.insert(info.name.clone(), (0, info));
        }
        Ok(checkpoint)
    }
}

fn decode(dtype: Dtype, bytes: &[u8], out: &mut [f32]) -> Result<()> {
    match dtype {
        Dtype::F32 => {
            for (out, b) in out.iter_mut().zip(bytes.as_chunks::<4>().0) {
                *out = f32::from_le_bytes(*b);
            }
        }
        Dtype::BF16 => {
            for (out, b) in out.iter_mut().zip(bytes.as_chunks::<2>().0) {
                *out = f32::from_bits(u32::from(u16::from_le_bytes(*b)) << 16);
            }
        }
        Dtype::F16 => {
            for (out, b) in out.iter_mut().zip(bytes.as_chunks::<2>().0) {
                *out = half::f16::from_le_bytes(*b).to_f32();
            }
        }
        other => {
            return Err(Error::input(format!(
                "tensor of type {other:?} cannot be read as f32, only F32, BF16 and F16 can"
            )));
        }
    }
    Ok(())
}
