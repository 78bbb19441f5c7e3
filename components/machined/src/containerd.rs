//! Images in containerd: listing, and importing OCI archives without a registry. Blobs are checked against their digests
//! while they are written, and held by a lease until the image that needs them exists.

use std::collections::BTreeMap;
use std::fs::File;
use std::io::{self, Read, Seek, SeekFrom};
use std::path::{Path, PathBuf};

use containerd_client::services::v1::containers_client::ContainersClient;
use containerd_client::services::v1::content_client::ContentClient;
use containerd_client::services::v1::diff_client::DiffClient;
use containerd_client::services::v1::images_client::ImagesClient;
use containerd_client::services::v1::leases_client::LeasesClient;
use containerd_client::services::v1::namespaces_client::NamespacesClient;
use containerd_client::services::v1::snapshots::snapshots_client::SnapshotsClient;
use containerd_client::services::v1::snapshots::{
    CommitSnapshotRequest, PrepareSnapshotRequest, RemoveSnapshotRequest, StatSnapshotRequest,
};
use containerd_client::services::v1::tasks_client::TasksClient;
use containerd_client::services::v1::{
    ApplyRequest, CreateImageRequest, CreateNamespaceRequest, CreateRequest, DeleteRequest, Image, InfoRequest, ListContainersRequest,
    ListImagesRequest, ListTasksRequest, Namespace, UpdateImageRequest, WriteAction, WriteContentRequest,
};
use containerd_client::types::Descriptor;
use containerd_client::types::v1::Status as TaskStatus;
use serde::Deserialize;
use sha2::{Digest as _, Sha256};
use tonic::metadata::{Ascii, MetadataValue};
use tonic::transport::Channel;
use tonic::{Code, Request, Status};

/// The namespace that Kubernetes' images are in.
const NAMESPACE: &str = "k8s.io";
/// Tells containerd's CRI side that the image is its own.
const MANAGED: (&str, &str) = ("io.cri-containerd.image", "managed");
/// Tells a pod's container from its sandbox.
const KIND: (&str, &str) = ("io.cri-containerd.kind", "container");
/// Keeps the kubelet from removing an image.
const PINNED: (&str, &str) = ("io.cri-containerd.pinned", "pinned");
/// Manifests and indexes are read into memory; larger ones are not real.
const MAX_DOCUMENT: u64 = 4 << 20;
const MAX_ENTRIES: usize = 10_000;
/// Indexes in indexes in indexes.
const MAX_DEPTH: usize = 4;
const CHUNK: usize = 1 << 20;
/// What Kubernetes' containers are mounted with.
const SNAPSHOTTER: &str = "overlayfs";

/// Why an image could not be listed or imported.
#[derive(Debug, thiserror::Error)]
pub enum ImageError {
    /// containerd can't be reached.
    #[error("connect to containerd")]
    Connect(#[source] tonic::transport::Error),
    /// containerd refused.
    #[error("{operation} in containerd: {message}")]
    Containerd { operation: &'static str, message: String },
    /// The archive can't be read.
    #[error("read the archive {path}")]
    Archive { path: PathBuf, source: io::Error },
    /// The archive is not what it should be.
    #[error("the archive {path} {problem}")]
    Invalid { path: PathBuf, problem: String },
}

/// A container of a pod.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct RunningContainer {
    /// Its pod's namespace.
    pub namespace: String,
    /// Its name in the pod.
    pub name: String,
}

/// containerd's API.
#[derive(Clone, Debug)]
pub struct Containerd {
    channel: Channel,
}

impl Containerd {
    /// Connects to the socket.
    pub async fn connect(socket: &Path) -> Result<Containerd, ImageError> {
        Ok(Containerd { channel: containerd_client::connect(socket).await.map_err(ImageError::Connect)? })
    }

    /// All images that Kubernetes can use.
    pub async fn images(&self) -> Result<Vec<Image>, ImageError> {
        let request = in_namespace(ListImagesRequest { filters: Vec::new() }, None);
        let response = ImagesClient::new(self.channel.clone()).list(request).await.map_err(failed("list images"))?;
        Ok(response.into_inner().images)
    }

    /// The containers of pods that run, without the pods' sandboxes.
    pub async fn running(&self) -> Result<Vec<RunningContainer>, ImageError> {
        let request = in_namespace(ListContainersRequest { filters: Vec::new() }, None);
        let listed = ContainersClient::new(self.channel.clone()).list(request).await.map_err(failed("list containers"))?;
        let request = in_namespace(ListTasksRequest { filter: String::new() }, None);
        let tasks = TasksClient::new(self.channel.clone()).list(request).await.map_err(failed("list tasks"))?.into_inner().tasks;
        let runs = |id: &str| tasks.iter().any(|task| (task.id == id || task.container_id == id) && task.status() == TaskStatus::Running);
        let containers = listed.into_inner().containers.into_iter().filter(|container| runs(&container.id));
        let described = containers.filter_map(|container| {
            let label = |name: &str| container.labels.get(name).cloned();
            (label(KIND.0)? == KIND.1).then_some(())?;
            Some(RunningContainer { namespace: label("io.kubernetes.pod.namespace")?, name: label("io.kubernetes.container.name")? })
        });
        Ok(described.collect())
    }

    /// Imports every image of an OCI archive, and gives their names with what they point to.
    pub async fn import(&self, archive: &Path, pinned: bool) -> Result<Vec<Image>, ImageError> {
        let path = archive.to_owned();
        let contents = tokio::task::spawn_blocking(move || Archive::open(&path))
            .await
            .map_err(|error| ImageError::Invalid { path: archive.to_owned(), problem: format!("could not be read: {error}") })??;
        self.ensure_namespace().await?;
        let lease = self.lease().await?;
        let imported = self.import_leased(&contents, &lease, pinned).await;
        let request = in_namespace(DeleteRequest { id: lease.clone(), sync: false }, None);
        if let Err(error) = LeasesClient::new(self.channel.clone()).delete(request).await {
            // It expires by itself.
            tracing::warn!(lease, error = error.message(), "delete containerd's lease after an import");
        }
        imported
    }

    async fn import_leased(&self, archive: &Archive, lease: &str, pinned: bool) -> Result<Vec<Image>, ImageError> {
        let mut images = Vec::new();
        for descriptor in &archive.index.manifests {
            let manifest = self.write_tree(archive, descriptor, lease, 0).await?;
            if let Some(manifest) = &manifest {
                self.unpack(archive, manifest, lease).await?;
            }
            let config = manifest.map(|manifest| manifest.config.digest);
            let target = descriptor.descriptor();
            let name = archive.name_of(descriptor)?;
            // The kubelet names images by their config's digest, too.
            for reference in std::iter::once(name.clone()).chain(config) {
                self.set_image(&reference, target.clone(), pinned, lease).await?;
            }
            images.push(Image { name, target: Some(target), ..Image::default() });
        }
        Ok(images)
    }

    /// Unpacks an image's layers and waits until they are on the disk. containerd would do the first when the image is first used, and
    /// not the second, so that a power cut soon after it leaves programs of length zero behind.
    async fn unpack(&self, archive: &Archive, manifest: &Manifest, lease: &str) -> Result<(), ImageError> {
        let text = archive.document(&manifest.config)?;
        let config: ImageConfig = serde_json::from_slice(&text)
            .map_err(|error| archive.invalid(format!("holds a config {} that is not one: {error}", manifest.config.digest)))?;
        let (layers, diffs) = (&manifest.layers, &config.rootfs.diff_ids);
        if layers.len() != diffs.len() {
            return Err(archive.invalid(format!("has {} layers, of which its config names {}", layers.len(), diffs.len())));
        }
        let mut parent = String::new();
        for (layer, diff) in layers.iter().zip(diffs) {
            let chain = chain_id(&parent, diff);
            self.unpack_layer(archive, layer, diff, Chain { parent: &parent, name: &chain }, lease).await?;
            parent = chain;
        }
        // Keeps the snapshots as long as the image.
        let labels = [(format!("containerd.io/gc.ref.snapshot.{SNAPSHOTTER}"), parent)];
        self.label(&manifest.config, labels.into()).await
    }

    async fn unpack_layer(
        &self,
        archive: &Archive,
        layer: &Reference,
        diff: &str,
        chain: Chain<'_>,
        lease: &str,
    ) -> Result<(), ImageError> {
        let mut snapshots = SnapshotsClient::new(self.channel.clone());
        let snapshotter = SNAPSHOTTER.to_owned();
        let stat = StatSnapshotRequest { snapshotter: snapshotter.clone(), key: chain.name.to_owned() };
        if snapshots.stat(in_namespace(stat, Some(lease))).await.is_ok() {
            return Ok(());
        }
        let key = format!("extract-{} {}", uuid::Uuid::new_v4(), chain.name);
        let prepare = PrepareSnapshotRequest {
            snapshotter: snapshotter.clone(),
            key: key.clone(),
            parent: chain.parent.to_owned(),
            ..PrepareSnapshotRequest::default()
        };
        let mounts = snapshots.prepare(in_namespace(prepare, Some(lease))).await.map_err(failed("prepare a snapshot"))?.into_inner().mounts;
        let apply = ApplyRequest { diff: Some(layer.descriptor()), mounts, sync_fs: true, ..ApplyRequest::default() };
        let applied = DiffClient::new(self.channel.clone()).apply(in_namespace(apply, Some(lease))).await.map_err(failed("unpack a layer"));
        let outcome = match applied.map(|response| response.into_inner().applied.map(|applied| applied.digest)) {
            Ok(Some(found)) if found == diff => {
                let commit = CommitSnapshotRequest {
                    snapshotter: snapshotter.clone(),
                    name: chain.name.to_owned(),
                    key: key.clone(),
                    ..CommitSnapshotRequest::default()
                };
                match snapshots.commit(in_namespace(commit, Some(lease))).await {
                    Ok(_) => return Ok(()),
                    // Somebody else unpacked it meanwhile; ours is removed.
                    Err(status) if status.code() == Code::AlreadyExists => Ok(()),
                    Err(status) => Err(failed("commit a snapshot")(status)),
                }
            }
            Ok(found) => {
                let found = found.unwrap_or_default();
                Err(archive.invalid(format!("holds a layer {} that unpacks to {found}, and its config says {diff}", layer.digest)))
            }
            Err(error) => Err(error),
        };
        let remove = RemoveSnapshotRequest { snapshotter, key: key.clone() };
        if let Err(status) = snapshots.remove(in_namespace(remove, Some(lease))).await {
            // It goes with the lease.
            tracing::warn!(key, error = status.message(), "remove a snapshot that is not needed");
        }
        outcome
    }

    /// Writes a manifest or index and everything it refers to, leaves first. Gives the manifest, the last one of an index.
    async fn write_tree(&self, archive: &Archive, root: &Reference, lease: &str, depth: usize) -> Result<Option<Manifest>, ImageError> {
        if depth > MAX_DEPTH {
            return Err(archive.invalid("nests indexes too deeply".to_owned()));
        }
        let text = archive.document(root)?;
        let document: Document = serde_json::from_slice(&text)
            .map_err(|error| archive.invalid(format!("holds a manifest {} that is not one: {error}", root.digest)))?;
        let mut labels = BTreeMap::new();
        let mut found = None;
        for (number, manifest) in document.manifests.iter().enumerate() {
            // Platforms that the archive leaves out are none of our business.
            if archive.has(manifest) {
                let inner = Box::pin(self.write_tree(archive, manifest, lease, depth + 1)).await?;
                found = inner.or(found);
                labels.insert(format!("containerd.io/gc.ref.content.m.{number}"), manifest.digest.clone());
            }
        }
        if let Some(reference) = &document.config {
            self.write_blob(archive, reference, lease, BTreeMap::new()).await?;
            labels.insert("containerd.io/gc.ref.content.config".to_owned(), reference.digest.clone());
            found = Some(Manifest { config: reference.clone(), layers: document.layers.clone() });
        }
        for (number, layer) in document.layers.iter().enumerate() {
            self.write_blob(archive, layer, lease, BTreeMap::new()).await?;
            labels.insert(format!("containerd.io/gc.ref.content.l.{number}"), layer.digest.clone());
        }
        self.write_blob(archive, root, lease, labels).await?;
        Ok(found)
    }

    async fn write_blob(
        &self,
        archive: &Archive,
        blob: &Reference,
        lease: &str,
        labels: BTreeMap<String, String>,
    ) -> Result<(), ImageError> {
        let mut client = ContentClient::new(self.channel.clone());
        match client.info(in_namespace(InfoRequest { digest: blob.digest.clone() }, None)).await {
            Ok(_) if labels.is_empty() => return Ok(()),
            Ok(_) => return self.label(blob, labels).await,
            Err(status) if status.code() == Code::NotFound => {}
            Err(status) => return Err(failed("look for content")(status)),
        }
        let total = i64::try_from(blob.size).map_err(|_| archive.invalid(format!("holds a blob {} of impossible size", blob.digest)))?;
        let (requests, stream) = tokio::sync::mpsc::channel(2);
        let reader = archive.blob(blob)?;
        let message = WriteContentRequest {
            r#ref: format!("strake-import-{}", blob.digest),
            total,
            expected: blob.digest.clone(),
            labels: labels.clone().into_iter().collect(),
            ..WriteContentRequest::default()
        };
        let sender = tokio::task::spawn_blocking(move || send_blob(reader, message, &requests));
        let request = in_namespace(tokio_stream::wrappers::ReceiverStream::new(stream), Some(lease));
        let written = async {
            let mut responses = client.write(request).await?.into_inner();
            while responses.message().await?.is_some() {}
            Ok::<_, Status>(())
        }
        .await;
        let sent = sender.await.map_err(|error| archive.invalid(format!("could not be read: {error}")))?;
        match written {
            Err(status) if status.code() == Code::AlreadyExists => self.label(blob, labels).await,
            // A file that can't be read explains why containerd did not get what it expected.
            Err(status) => match sent {
                Err(source) => Err(ImageError::Archive { path: archive.path.clone(), source }),
                Ok(()) => Err(failed("write content")(status)),
            },
            Ok(()) => sent.map_err(|source| ImageError::Archive { path: archive.path.clone(), source }),
        }
    }

    /// Adds labels to a blob that was there already.
    async fn label(&self, blob: &Reference, labels: BTreeMap<String, String>) -> Result<(), ImageError> {
        if labels.is_empty() {
            return Ok(());
        }
        let paths = labels.keys().map(|label| format!("labels.{label}")).collect();
        let request = containerd_client::services::v1::UpdateRequest {
            info: Some(containerd_client::services::v1::Info {
                digest: blob.digest.clone(),
                labels: labels.into_iter().collect(),
                ..Default::default()
            }),
            update_mask: Some(prost_types::FieldMask { paths }),
        };
        ContentClient::new(self.channel.clone()).update(in_namespace(request, None)).await.map_err(failed("label content"))?;
        Ok(())
    }

    async fn set_image(&self, name: &str, target: Descriptor, pinned: bool, lease: &str) -> Result<(), ImageError> {
        let mut labels = vec![MANAGED];
        labels.extend(pinned.then_some(PINNED));
        let labels = labels.into_iter().map(|(name, value)| (name.to_owned(), value.to_owned())).collect();
        let image = Image { name: name.to_owned(), labels, target: Some(target), ..Image::default() };
        let mut client = ImagesClient::new(self.channel.clone());
        let create = CreateImageRequest { image: Some(image.clone()), ..CreateImageRequest::default() };
        match client.create(in_namespace(create, Some(lease))).await {
            Ok(_) => Ok(()),
            Err(status) if status.code() == Code::AlreadyExists => {
                let update = UpdateImageRequest { image: Some(image), ..UpdateImageRequest::default() };
                client.update(in_namespace(update, Some(lease))).await.map_err(failed("update an image"))?;
                Ok(())
            }
            Err(status) => Err(failed("create an image")(status)),
        }
    }

    async fn ensure_namespace(&self) -> Result<(), ImageError> {
        let namespace = Namespace { name: NAMESPACE.to_owned(), ..Namespace::default() };
        let request = Request::new(CreateNamespaceRequest { namespace: Some(namespace) });
        match NamespacesClient::new(self.channel.clone()).create(request).await {
            Err(status) if status.code() != Code::AlreadyExists => Err(failed("create the namespace")(status)),
            _ => Ok(()),
        }
    }

    /// Content that a lease holds is not collected; it ends by itself after an hour, should we not come to that.
    async fn lease(&self) -> Result<String, ImageError> {
        let expires = jiff::Timestamp::now() + jiff::SignedDuration::from_hours(1);
        let id = format!("strake-import-{}", uuid::Uuid::new_v4());
        let labels = [("containerd.io/gc.expire".to_owned(), expires.to_string())].into();
        let request = in_namespace(CreateRequest { id: id.clone(), labels }, None);
        LeasesClient::new(self.channel.clone()).create(request).await.map_err(failed("create a lease"))?;
        Ok(id)
    }
}

fn in_namespace<T>(message: T, lease: Option<&str>) -> Request<T> {
    let mut request = Request::new(message);
    request.metadata_mut().insert("containerd-namespace", MetadataValue::from_static(NAMESPACE));
    if let Some(lease) = lease.and_then(|lease| MetadataValue::<Ascii>::try_from(lease).ok()) {
        request.metadata_mut().insert("containerd-lease", lease);
    }
    request
}

fn failed(operation: &'static str) -> impl FnOnce(Status) -> ImageError {
    move |status| ImageError::Containerd { operation, message: format!("{:?}: {}", status.code(), status.message()) }
}

/// Sends a blob in pieces and then asks for it to be committed.
fn send_blob(
    mut reader: impl Read,
    template: WriteContentRequest,
    requests: &tokio::sync::mpsc::Sender<WriteContentRequest>,
) -> io::Result<()> {
    let total = u64::try_from(template.total).unwrap_or(0);
    let mut offset = 0;
    loop {
        let mut data = Vec::with_capacity(CHUNK.min(usize::try_from(total).unwrap_or(CHUNK)));
        let count = (&mut reader).take(CHUNK as u64).read_to_end(&mut data)? as u64;
        if count == 0 && offset < total {
            return Err(io::Error::new(io::ErrorKind::UnexpectedEof, "the archive ends within a blob"));
        }
        let last = offset + count >= total;
        let action = if last { WriteAction::Commit } else { WriteAction::Write };
        let position = i64::try_from(offset).unwrap_or(i64::MAX);
        let message = WriteContentRequest { action: action.into(), offset: position, data, ..template.clone() };
        offset += count;
        if requests.blocking_send(message).is_err() || last {
            // When nobody receives any more, the answer says why.
            return Ok(());
        }
    }
}

/// A descriptor of the OCI image specification.
#[derive(Clone, Debug, Deserialize)]
#[serde(rename_all = "camelCase")]
struct Reference {
    #[serde(default)]
    media_type: String,
    digest: String,
    size: u64,
    #[serde(default)]
    annotations: BTreeMap<String, String>,
}

impl Reference {
    fn descriptor(&self) -> Descriptor {
        Descriptor {
            media_type: self.media_type.clone(),
            digest: self.digest.clone(),
            size: i64::try_from(self.size).unwrap_or(i64::MAX),
            annotations: Default::default(),
        }
    }
}

/// A manifest of one image.
#[derive(Clone, Debug)]
struct Manifest {
    config: Reference,
    layers: Vec<Reference>,
}

/// What the OCI image config says of the layers when they are unpacked.
#[derive(Debug, Deserialize)]
struct ImageConfig {
    rootfs: RootFs,
}

#[derive(Debug, Deserialize)]
struct RootFs {
    diff_ids: Vec<String>,
}

/// Where a layer's snapshot is in the chain of snapshots.
struct Chain<'a> {
    parent: &'a str,
    name: &'a str,
}

/// The name of a layer's snapshot: the OCI image specification's ChainID.
fn chain_id(parent: &str, diff: &str) -> String {
    if parent.is_empty() {
        return diff.to_owned();
    }
    let digest: String = Sha256::digest(format!("{parent} {diff}")).iter().map(|byte| format!("{byte:02x}")).collect();
    format!("sha256:{digest}")
}

/// A manifest or an index; which of them, its fields say.
#[derive(Debug, Default, Deserialize)]
struct Document {
    #[serde(default)]
    manifests: Vec<Reference>,
    config: Option<Reference>,
    #[serde(default)]
    layers: Vec<Reference>,
}

/// An OCI archive: a tar file whose blobs are found by their place in it.
#[derive(Debug)]
struct Archive {
    path: PathBuf,
    index: Document,
    /// Offset and size of each blob by its digest.
    blobs: BTreeMap<String, (u64, u64)>,
}

impl Archive {
    fn open(path: &Path) -> Result<Archive, ImageError> {
        let unreadable = |source| ImageError::Archive { path: path.to_owned(), source };
        let mut archive = Archive { path: path.to_owned(), index: Document::default(), blobs: BTreeMap::new() };
        let mut index = None;
        let mut tar = tar::Archive::new(File::open(path).map_err(unreadable)?);
        for (number, entry) in tar.entries_with_seek().map_err(unreadable)?.enumerate() {
            let mut entry = entry.map_err(unreadable)?;
            if number >= MAX_ENTRIES {
                return Err(archive.invalid(format!("has more than {MAX_ENTRIES} entries")));
            }
            let name = entry.path().map_err(unreadable)?.to_string_lossy().trim_start_matches("./").to_owned();
            if name == "index.json" {
                let mut text = Vec::new();
                (&mut entry).take(MAX_DOCUMENT).read_to_end(&mut text).map_err(unreadable)?;
                index = Some(text);
            } else if let Some(hex) = name.strip_prefix("blobs/sha256/").filter(|hex| hex.len() == 64) {
                archive.blobs.insert(format!("sha256:{hex}"), (entry.raw_file_position(), entry.size()));
            }
        }
        let index = index.ok_or_else(|| archive.invalid("is no OCI archive: it has no index.json, or is cut off".to_owned()))?;
        archive.index =
            serde_json::from_slice(&index).map_err(|error| archive.invalid(format!("has an index.json that is not one: {error}")))?;
        if archive.index.manifests.is_empty() {
            return Err(archive.invalid("holds no image".to_owned()));
        }
        Ok(archive)
    }

    fn invalid(&self, problem: String) -> ImageError {
        ImageError::Invalid { path: self.path.clone(), problem }
    }

    fn has(&self, blob: &Reference) -> bool {
        self.blobs.contains_key(&blob.digest)
    }

    fn name_of(&self, descriptor: &Reference) -> Result<String, ImageError> {
        // The first is a whole reference, the second often a mere tag.
        let names = ["io.containerd.image.name", "org.opencontainers.image.ref.name"];
        let name = names.iter().find_map(|name| descriptor.annotations.get(*name));
        match name {
            Some(name) if name.contains(['/', ':']) && name.len() <= 1024 => Ok(name.clone()),
            Some(name) => Err(self.invalid(format!("names an image {name:?}, which is no complete reference such as example.org/app:v1"))),
            None => Err(self.invalid("does not name its image (annotation io.containerd.image.name in index.json)".to_owned())),
        }
    }

    fn blob(&self, blob: &Reference) -> Result<io::Take<File>, ImageError> {
        let Some(&(offset, size)) = self.blobs.get(&blob.digest) else {
            return Err(self.invalid(format!("lacks the blob {}", blob.digest)));
        };
        if size != blob.size {
            return Err(self.invalid(format!("holds {size} bytes of the blob {}, which has {}", blob.digest, blob.size)));
        }
        let open = || -> io::Result<io::Take<File>> {
            let mut file = File::open(&self.path)?;
            if file.metadata()?.len() < offset + size {
                return Err(io::Error::new(io::ErrorKind::UnexpectedEof, "the archive is cut off"));
            }
            file.seek(SeekFrom::Start(offset))?;
            Ok(file.take(size))
        };
        open().map_err(|source| ImageError::Archive { path: self.path.clone(), source })
    }

    fn document(&self, blob: &Reference) -> Result<Vec<u8>, ImageError> {
        if blob.size > MAX_DOCUMENT {
            return Err(self.invalid(format!("holds a manifest {} of {} bytes", blob.digest, blob.size)));
        }
        let mut text = Vec::new();
        self.blob(blob)?.read_to_end(&mut text).map_err(|source| ImageError::Archive { path: self.path.clone(), source })?;
        Ok(text)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn archive_of(entries: &[(&str, &[u8])]) -> Vec<u8> {
        let mut builder = tar::Builder::new(Vec::new());
        for (name, content) in entries {
            let mut header = tar::Header::new_gnu();
            header.set_size(content.len() as u64);
            header.set_mode(0o644);
            header.set_cksum();
            builder.append_data(&mut header, name, *content).unwrap();
        }
        builder.into_inner().unwrap()
    }

    fn open(bytes: &[u8]) -> Result<Archive, ImageError> {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("a.tar");
        std::fs::write(&path, bytes).unwrap();
        let archive = Archive::open(&path)?;
        // What is read later is read while the file is still there.
        for manifest in &archive.index.manifests {
            archive.name_of(manifest)?;
            archive.document(manifest)?;
        }
        Ok(archive)
    }

    #[test]
    fn bad_archives_are_refused_with_what_is_wrong() {
        let digest = format!("sha256:{}", "a".repeat(64));
        let blob = format!("blobs/sha256/{}", "a".repeat(64));
        let index = |size: usize, name: &str| {
            format!(
                r#"{{"manifests":[{{"mediaType":"m","digest":"{digest}","size":{size},"annotations":{{"io.containerd.image.name":"{name}"}}}}]}}"#
            )
        };
        let good = index(2, "example.org/app:v1");
        let whole = archive_of(&[("index.json", good.as_bytes()), (&blob, b"{}")]);
        assert!(open(&whole).is_ok());
        let cases: &[(Vec<u8>, &str)] = &[
            (b"no tar file".to_vec(), "read the archive"),
            (archive_of(&[("manifest.json", b"{}")]), "no index.json"),
            (archive_of(&[("index.json", b"nonsense")]), "index.json that is not one"),
            (archive_of(&[("index.json", br#"{"manifests":[]}"#)]), "holds no image"),
            (archive_of(&[("index.json", good.as_bytes())]), "lacks the blob"),
            (archive_of(&[("index.json", index(3, "example.org/app:v1").as_bytes()), (&blob, b"{}")]), "holds 2 bytes"),
            (archive_of(&[("index.json", index(2, "latest").as_bytes()), (&blob, b"{}")]), "no complete reference"),
            (whole[..600].to_vec(), ""),
        ];
        for (bytes, reason) in cases {
            let error = open(bytes).unwrap_err().to_string();
            assert!(error.contains(reason), "{error} does not say {reason}");
        }
    }

    #[test]
    fn snapshots_are_named_by_the_chain_of_their_layers() {
        let (one, two) = (format!("sha256:{}", "1".repeat(64)), format!("sha256:{}", "2".repeat(64)));
        assert_eq!(chain_id("", &one), one);
        // printf 'sha256:11…1 sha256:22…2' | sha256sum
        assert_eq!(chain_id(&one, &two), "sha256:9932074217c35353d2e03a3f5a86549f7c67bfeb0ba53e23d69f4d4c8f7958f5");
    }

    #[test]
    fn a_blob_is_sent_whole_and_committed_with_its_last_piece() {
        let content = vec![5u8; CHUNK * 2 + 10];
        let (sender, mut receiver) = tokio::sync::mpsc::channel(8);
        let template = WriteContentRequest { total: content.len() as i64, expected: "sha256:x".into(), ..Default::default() };
        send_blob(content.as_slice(), template.clone(), &sender).unwrap();
        let sent: Vec<_> = std::iter::from_fn(|| receiver.try_recv().ok()).collect();
        let shape: Vec<_> = sent.iter().map(|message| (message.action(), message.offset, message.data.len())).collect();
        let chunk = CHUNK as i64;
        assert_eq!(shape, [(WriteAction::Write, 0, CHUNK), (WriteAction::Write, chunk, CHUNK), (WriteAction::Commit, 2 * chunk, 10)]);
        assert!(send_blob(&content[..10], template, &sender).is_err(), "a truncated blob is an error");
    }
}
