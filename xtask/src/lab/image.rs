//! Images without a network: an OCI layout with layers of given sizes and seeded content, and the comparison of two.
//!
//! Layers are tar files in gzip's stored form. Clients compress a plain tar on its way to a registry, which would
//! change its digest; a gzip layer they leave alone.

use std::collections::BTreeSet;
use std::fs::{self, File};
use std::io::{BufReader, BufWriter, Read, Write};
use std::path::Path;

use anyhow::{Context, bail, ensure};
use serde_json::{Value, json};
use sha2::{Digest, Sha256};

const STORED_BLOCK: usize = 65_535;
const TAR_BLOCK: u64 = 512;

/// A layout on disk.
#[derive(Debug)]
pub struct Image {
    /// The manifest's digest.
    pub manifest: String,
    /// The layers' digests.
    pub layers: Vec<String>,
    /// All bytes of all blobs.
    pub bytes: u64,
}

/// Writes an image with one layer for each of `sizes` into `dir` under the tag `latest`.
///
/// # Errors
/// When a file cannot be written.
pub fn write(dir: &Path, sizes: &[u64], seed: u64) -> anyhow::Result<Image> {
    let blobs = dir.join("blobs/sha256");
    fs::create_dir_all(&blobs).with_context(|| format!("cannot create {}", blobs.display()))?;
    let mut layers = Vec::new();
    let mut diff_ids = Vec::new();
    let mut bytes = 0;
    for (index, size) in sizes.iter().enumerate() {
        let layer = write_layer(&blobs, *size, index, seed.wrapping_add(index as u64))?;
        bytes += layer.size;
        diff_ids.push(layer.diff_id.clone());
        layers.push(layer);
    }
    let config = json!({
        "architecture": "amd64", "os": "linux", "config": {},
        "rootfs": {"type": "layers", "diff_ids": diff_ids},
        "history": diff_ids.iter().map(|_| json!({"created_by": "portcullis lab"})).collect::<Vec<_>>(),
    });
    let (config, config_size) = write_json(&blobs, &config)?;
    let descriptors: Vec<Value> = layers.iter().map(|layer| {
        json!({"mediaType": "application/vnd.oci.image.layer.v1.tar+gzip", "digest": layer.digest, "size": layer.size})
    }).collect();
    let manifest = json!({
        "schemaVersion": 2,
        "mediaType": "application/vnd.oci.image.manifest.v1+json",
        "config": {"mediaType": "application/vnd.oci.image.config.v1+json", "digest": config, "size": config_size},
        "layers": descriptors,
    });
    let (manifest, manifest_size) = write_json(&blobs, &manifest)?;
    let index = json!({
        "schemaVersion": 2,
        "manifests": [{
            "mediaType": "application/vnd.oci.image.manifest.v1+json", "digest": manifest, "size": manifest_size,
            "annotations": {"org.opencontainers.image.ref.name": "latest"},
        }],
    });
    fs::write(dir.join("index.json"), index.to_string()).context("cannot write index.json")?;
    fs::write(dir.join("oci-layout"), r#"{"imageLayoutVersion":"1.0.0"}"#).context("cannot write oci-layout")?;
    let layers = layers.into_iter().map(|layer| layer.digest).collect();
    Ok(Image { manifest, layers, bytes: bytes + config_size + manifest_size })
}

struct Layer {
    digest: String,
    diff_id: String,
    size: u64,
}

fn write_layer(blobs: &Path, size: u64, index: usize, seed: u64) -> anyhow::Result<Layer> {
    let draft = blobs.join(format!(".layer-{index}"));
    let file = File::create(&draft).with_context(|| format!("cannot write {}", draft.display()))?;
    let mut gzip = StoredGzip::begin(BufWriter::with_capacity(1 << 20, file))?;
    gzip.write(&tar_header(&format!("layer-{index}.bin"), size))?;
    let mut content = Content(seed);
    let mut left = size;
    let mut buffer = vec![0; 1 << 16];
    while left > 0 {
        let part = usize::try_from(left.min(buffer.len() as u64))?;
        content.fill(&mut buffer[..part]);
        gzip.write(&buffer[..part])?;
        left -= part as u64;
    }
    let padding = (TAR_BLOCK - size % TAR_BLOCK) % TAR_BLOCK;
    gzip.write(&vec![0; usize::try_from(padding + 2 * TAR_BLOCK)?])?;
    let layer = gzip.end()?;
    fs::rename(&draft, blobs.join(layer.digest.trim_start_matches("sha256:"))).context("cannot name a layer")?;
    Ok(layer)
}

fn write_json(blobs: &Path, value: &Value) -> anyhow::Result<(String, u64)> {
    let text = value.to_string();
    let hex = hex(&Sha256::digest(&text));
    fs::write(blobs.join(&hex), &text).with_context(|| format!("cannot write blob {hex}"))?;
    Ok((format!("sha256:{hex}"), text.len() as u64))
}

/// gzip whose deflate blocks are all of the stored kind: as fast as copying, and one digest for ever.
struct StoredGzip<W> {
    out: W,
    pending: Vec<u8>,
    outer: Sha256,
    inner: Sha256,
    crc: crc32fast::Hasher,
    size: u64,
    written: u64,
}

impl<W: Write> StoredGzip<W> {
    fn begin(out: W) -> anyhow::Result<Self> {
        let mut gzip = Self {
            out,
            pending: Vec::with_capacity(STORED_BLOCK),
            outer: Sha256::new(),
            inner: Sha256::new(),
            crc: crc32fast::Hasher::new(),
            size: 0,
            written: 0,
        };
        gzip.emit(&[0x1f, 0x8b, 8, 0, 0, 0, 0, 0, 0, 255])?;
        Ok(gzip)
    }

    fn emit(&mut self, bytes: &[u8]) -> anyhow::Result<()> {
        self.outer.update(bytes);
        self.written += bytes.len() as u64;
        self.out.write_all(bytes).context("cannot write a layer")
    }

    fn write(&mut self, mut bytes: &[u8]) -> anyhow::Result<()> {
        self.inner.update(bytes);
        self.crc.update(bytes);
        self.size += bytes.len() as u64;
        while !bytes.is_empty() {
            let room = STORED_BLOCK - self.pending.len();
            let (now, later) = bytes.split_at(room.min(bytes.len()));
            self.pending.extend_from_slice(now);
            bytes = later;
            if self.pending.len() == STORED_BLOCK {
                self.block(false)?;
            }
        }
        Ok(())
    }

    fn block(&mut self, last: bool) -> anyhow::Result<()> {
        let block = std::mem::take(&mut self.pending);
        let length = u16::try_from(block.len())?;
        let [low, high] = length.to_le_bytes();
        let [not_low, not_high] = (!length).to_le_bytes();
        self.emit(&[u8::from(last), low, high, not_low, not_high])?;
        self.emit(&block)?;
        self.pending = block;
        self.pending.clear();
        Ok(())
    }

    fn end(mut self) -> anyhow::Result<Layer> {
        self.block(true)?;
        let crc = self.crc.clone().finalize();
        let size = self.size as u32;
        self.emit(&crc.to_le_bytes())?;
        self.emit(&size.to_le_bytes())?;
        self.out.flush().context("cannot write a layer")?;
        Ok(Layer {
            digest: format!("sha256:{}", hex(&self.outer.finalize())),
            diff_id: format!("sha256:{}", hex(&self.inner.finalize())),
            size: self.written,
        })
    }
}

fn tar_header(name: &str, size: u64) -> [u8; 512] {
    let mut header = [0_u8; 512];
    let mut put = |at: usize, text: &str| header[at..at + text.len()].copy_from_slice(text.as_bytes());
    put(0, name);
    put(100, "0000644\0");
    put(108, "0000000\0");
    put(116, "0000000\0");
    put(124, &format!("{size:011o}\0"));
    put(136, "00000000000\0");
    put(148, "        ");
    put(156, "0");
    put(257, "ustar\u{0}00");
    let sum: u32 = header.iter().map(|byte| u32::from(*byte)).sum();
    header[148..156].copy_from_slice(format!("{sum:06o}\0 ").as_bytes());
    header
}

/// Bytes that depend on a seed and nothing else (splitmix64).
#[derive(Debug)]
pub struct Content(pub u64);

impl Content {
    /// Fills `out` with the next bytes.
    pub fn fill(&mut self, out: &mut [u8]) {
        for chunk in out.chunks_mut(8) {
            self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
            let mut word = self.0;
            word = (word ^ (word >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
            word = (word ^ (word >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
            word ^= word >> 31;
            chunk.copy_from_slice(&word.to_le_bytes()[..chunk.len()]);
        }
    }
}

/// What two layouts have in common: everything, or an error that says what differs.
///
/// # Errors
/// When a blob is missing or differs in one byte, or the manifests are not the same.
pub fn compare(left: &Path, right: &Path) -> anyhow::Result<Comparison> {
    let (ours, theirs) = (manifest_digest(left)?, manifest_digest(right)?);
    ensure!(ours == theirs, "the manifests differ: {ours} and {theirs}");
    let (names, other) = (blob_names(left)?, blob_names(right)?);
    if let Some(name) = names.symmetric_difference(&other).next() {
        bail!("the blob {name} is in only one of {} and {}", left.display(), right.display());
    }
    let mut comparison = Comparison { blobs: names.len(), bytes: 0 };
    for name in &names {
        let path = Path::new("blobs/sha256").join(name);
        comparison.bytes += same_bytes(&left.join(&path), &right.join(&path), name)?;
    }
    Ok(comparison)
}

/// How much was compared.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Comparison {
    /// How many blobs, the manifest among them.
    pub blobs: usize,
    /// Their bytes.
    pub bytes: u64,
}

fn manifest_digest(layout: &Path) -> anyhow::Result<String> {
    let path = layout.join("index.json");
    let text = fs::read_to_string(&path).with_context(|| format!("cannot read {}", path.display()))?;
    let index: Value = serde_json::from_str(&text).with_context(|| format!("{} is no JSON", path.display()))?;
    let digest = index["manifests"][0]["digest"].as_str();
    Ok(digest.with_context(|| format!("{} names no manifest", path.display()))?.to_owned())
}

fn blob_names(layout: &Path) -> anyhow::Result<BTreeSet<String>> {
    let dir = layout.join("blobs/sha256");
    let entries = fs::read_dir(&dir).with_context(|| format!("cannot read {}", dir.display()))?;
    let names = entries.map(|entry| Ok(entry?.file_name().to_string_lossy().into_owned()));
    names.collect::<std::io::Result<_>>().with_context(|| format!("cannot read {}", dir.display()))
}

fn same_bytes(left: &Path, right: &Path, digest: &str) -> anyhow::Result<u64> {
    let open = |path: &Path| {
        let file = File::open(path).with_context(|| format!("cannot read {}", path.display()))?;
        anyhow::Ok(BufReader::with_capacity(1 << 16, file))
    };
    let (mut left, mut right) = (open(left)?, open(right)?);
    let (mut ours, mut theirs) = (vec![0; 1 << 16], vec![0; 1 << 16]);
    let mut hash = Sha256::new();
    let mut bytes = 0;
    loop {
        let read = left.read(&mut ours).context("cannot read a blob")?;
        if read == 0 {
            ensure!(right.read(&mut theirs).context("cannot read a blob")? == 0, "blob {digest} differs in length");
            break;
        }
        ensure!(right.read_exact(&mut theirs[..read]).is_ok(), "blob {digest} differs in length");
        ensure!(ours[..read] == theirs[..read], "blob {digest} differs after {bytes} bytes");
        hash.update(&ours[..read]);
        bytes += read as u64;
    }
    ensure!(hex(&hash.finalize()) == digest, "blob {digest} does not have the digest of its name");
    Ok(bytes)
}

fn hex(bytes: &[u8]) -> String {
    bytes.iter().map(|byte| format!("{byte:02x}")).collect()
}

/// The SHA-256 of some bytes, in hexadecimal digits.
#[must_use]
pub fn sha256(bytes: &[u8]) -> String {
    hex(&Sha256::digest(bytes))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::lab::cmd::Cmd;
    use crate::lab::process::scratch;

    #[test]
    fn a_layer_is_a_gzip_file_that_holds_a_tar_file() {
        let dir = scratch("image").unwrap();
        let image = write(dir.path(), &[100_000], 7).unwrap();
        let layer = dir.path().join("blobs/sha256").join(image.layers[0].trim_start_matches("sha256:"));
        let names = Cmd::new("tar").arg("-tvzf").arg(&layer).run().unwrap();
        assert!(names.contains("100000") && names.contains("layer-0.bin"), "{names}");
    }

    #[test]
    fn the_seed_decides_the_content() {
        let (one, two, three) = (scratch("image").unwrap(), scratch("image").unwrap(), scratch("image").unwrap());
        let sizes = [0, 1, 511, 512, 65_535, 70_000];
        let image = write(one.path(), &sizes, 1).unwrap();
        write(two.path(), &sizes, 1).unwrap();
        write(three.path(), &sizes, 2).unwrap();
        let comparison = compare(one.path(), two.path()).unwrap();
        assert_eq!(comparison, Comparison { blobs: sizes.len() + 2, bytes: image.bytes });
        assert!(compare(one.path(), three.path()).is_err());
    }

    #[test]
    fn one_changed_byte_is_found() {
        let (one, two) = (scratch("image").unwrap(), scratch("image").unwrap());
        let image = write(one.path(), &[200_000], 1).unwrap();
        write(two.path(), &[200_000], 1).unwrap();
        let layer = two.path().join("blobs/sha256").join(image.layers[0].trim_start_matches("sha256:"));
        let mut bytes = fs::read(&layer).unwrap();
        let middle = bytes.len() / 2;
        bytes[middle] ^= 1;
        fs::write(&layer, bytes).unwrap();
        let error = compare(one.path(), two.path()).unwrap_err();
        assert!(format!("{error:#}").contains("differs after"), "{error:#}");
    }
}
