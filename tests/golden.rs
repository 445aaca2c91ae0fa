//! Containers as every released format keeps them, read byte for byte, for as
//! long as there is this program. What it writes into them can be read by the
//! rules of whoever made them.
//!
//! `tests/golden/format1` is the original's (version "1"); see its README. That
//! it is read from a real Swift needs `scripts/lab run -- cargo test --test
//! golden`, or `scripts/test`; without one that test fails.

#[path = "support/plain_swift.rs"]
mod plain_swift;

use std::collections::BTreeMap;
use std::path::PathBuf;
use std::sync::Arc;

use bytes::Bytes;
use plain_swift::Swift;
use swiftnbd::credentials::Credentials;
use swiftnbd::image::Image;
use swiftnbd::image::meta::{self, Format, Holder};
use swiftnbd::image::objects::layout::Layout;
use swiftnbd::image::objects::{Limits, Objects};
use swiftnbd::store::dir::DirStore;
use swiftnbd::store::memory::MemoryService;
use swiftnbd::store::swift::SwiftStore;
use swiftnbd::store::{Metadata, ObjectStore};

const OBJECTS: usize = 64;
const SIZE: usize = 4096;
const MAX_OBJECT: u64 = 1 << 20;

/// A golden container, from the files in the repository.
struct Golden {
    /// Header names and values, as they are sent.
    headers: Vec<(String, String)>,
    objects: BTreeMap<String, Vec<u8>>,
    sha256: String,
}

impl Golden {
    fn read() -> Golden {
        let root = PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("tests/golden/format1");
        let text = |name: &str| std::fs::read_to_string(root.join(name)).unwrap();
        let header = |line: &str| {
            let (name, value) = line.split_once(':').unwrap();
            (name.to_owned(), value.trim().to_owned())
        };
        let files = std::fs::read_dir(root.join("disk.part")).unwrap();
        let object = |file: std::io::Result<std::fs::DirEntry>| {
            let file = file.unwrap();
            let name = file.file_name().into_string().unwrap();
            (
                format!("disk.part/{name}"),
                std::fs::read(file.path()).unwrap(),
            )
        };
        Golden {
            headers: text("metadata").lines().map(header).collect(),
            objects: files.map(object).collect(),
            sha256: text("image.sha256").split(' ').next().unwrap().to_owned(),
        }
    }

    /// The metadata as a store of ours gives them.
    fn metadata(&self) -> Metadata {
        let pairs = self.headers.iter().map(|(name, value)| {
            let name = name.to_ascii_lowercase();
            let key = name.strip_prefix(plain_swift::META).unwrap();
            (key.to_owned(), value.clone())
        });
        pairs.collect()
    }

    async fn load(&self, store: &dyn ObjectStore) {
        store.create().await.unwrap();
        store.set_metadata(&self.metadata()).await.unwrap();
        for (name, body) in &self.objects {
            store.put(name, Bytes::from(body.clone())).await.unwrap();
        }
    }
}

/// The device by the original's own rules: `disk.part/%08i` from 0, a missing one
/// is zeros, one of another size an error.
fn by_the_originals_rules(objects: &BTreeMap<String, Vec<u8>>) -> Vec<u8> {
    let mut image = Vec::new();
    for index in 0..OBJECTS {
        match objects.get(&format!("disk.part/{index:08}")) {
            Some(body) => {
                assert_eq!(body.len(), SIZE, "object {index}");
                image.extend_from_slice(body);
            }
            None => image.extend_from_slice(&[0; SIZE]),
        }
    }
    image
}

/// The image in these metadata: open, as `attach` opens it.
async fn open(store: &Arc<dyn ObjectStore>) -> Objects {
    let there = meta::read(&**store).await.unwrap();
    let layout = Layout {
        objects: OBJECTS as u64,
        object_size: SIZE as u32,
    };
    assert_eq!(there.format, Format::Objects(layout));
    let limits = Limits {
        cache: 1 << 20,
        dirty: 1 << 20,
    };
    Objects::start(Arc::clone(store), layout, limits)
}

async fn read(image: &Objects, offset: usize, length: usize) -> Vec<u8> {
    image
        .read(offset as u64, length as u32)
        .await
        .unwrap()
        .concat()
}

/// All that a container of this format promises, in this store. `objects` gives
/// what is in the container, past the store if it can.
async fn check(
    golden: &Golden,
    store: Arc<dyn ObjectStore>,
    objects: impl AsyncFn() -> BTreeMap<String, Vec<u8>>,
) {
    assert_eq!(objects().await, golden.objects);
    let there = meta::read(&*store).await.unwrap();
    assert_eq!(there.client, None);
    assert_eq!(
        there.last,
        Some(Holder("127.0.0.1:52360@1385853264".to_owned()))
    );

    let image = open(&store).await;
    assert_eq!(image.size(), (OBJECTS * SIZE) as u64);
    let mut model = read(&image, 0, OBJECTS * SIZE).await;
    assert_eq!(sha256(&model), golden.sha256);
    assert!(model == by_the_originals_rules(&golden.objects));
    // In pieces that do not care for objects.
    for (at, length) in [
        (0, 512),
        (4096 * 19 + 3584, 1024),
        (4096 * 29, 4096 * 3),
        (261_632, 512),
    ] {
        assert!(
            read(&image, at, length).await == model[at..at + length],
            "{at}+{length}"
        );
    }
    // Reading has changed nothing.
    image.close().await.unwrap();
    assert_eq!(objects().await, golden.objects);

    // A new object, a part of an old one, across two, the last bytes, and zeros
    // over a whole one.
    let image = open(&store).await;
    let mut write = async |at: usize, data: Vec<u8>| {
        model[at..at + data.len()].copy_from_slice(&data);
        image.write(at as u64, data.into()).await.unwrap();
    };
    write(50 * SIZE, vec![0x50; SIZE]).await;
    write(2 * SIZE + 512, vec![0x02; 1024]).await;
    write(21 * SIZE - 512, vec![0x21; 1024]).await;
    write(OBJECTS * SIZE - 512, vec![0x63; 512]).await;
    write(30 * SIZE, vec![0; SIZE]).await;
    image.flush().await.unwrap();
    let stored = objects().await;
    assert!(
        by_the_originals_rules(&stored) == model,
        "what the original would read"
    );
    let strangers: Vec<_> = stored
        .keys()
        .filter(|name| !golden.objects.contains_key(*name))
        .collect();
    assert_eq!(
        strangers,
        [
            "disk.part/00000020",
            "disk.part/00000021",
            "disk.part/00000050"
        ]
    );
    image.close().await.unwrap();

    // What it says of itself is what the original wrote, a lock later.
    let holder = Holder("host:1@1700000000".to_owned());
    meta::lock(&*store, &holder).await.unwrap();
    meta::release(&*store, &holder, true).await.unwrap();
    let mut wanted = golden.metadata();
    wanted.remove("swiftnbd-client");
    wanted.insert("swiftnbd-last".to_owned(), holder.0);
    assert_eq!(store.metadata().await.unwrap(), wanted);
    let image = open(&store).await;
    assert!(read(&image, 0, OBJECTS * SIZE).await == model);
    image.close().await.unwrap();
}

#[tokio::test]
async fn in_memory() {
    let golden = Golden::read();
    let service = MemoryService::new();
    let store: Arc<dyn ObjectStore> = Arc::new(service.store("golden"));
    golden.load(&*store).await;
    check(&golden, store, async || {
        let names = service.names("golden").into_iter();
        names
            .map(|name| {
                let body = service.object("golden", &name).unwrap();
                (name, body.to_vec())
            })
            .collect()
    })
    .await;
}

#[tokio::test]
async fn in_a_directory() {
    let golden = Golden::read();
    let files = tempfile::tempdir().unwrap();
    let open = || Arc::new(DirStore::new(files.path(), "golden", MAX_OBJECT).unwrap());
    let store: Arc<dyn ObjectStore> = open();
    golden.load(&*store).await;
    check(&golden, store, async || {
        let store = open();
        let mut objects = BTreeMap::new();
        for listed in store.list("", "", 1000).await.unwrap() {
            let body = store.get(&listed.name).await.unwrap().to_vec();
            objects.insert(listed.name, body);
        }
        objects
    })
    .await;
}

/// Put there and looked at in plain HTTP requests, as the original sends them.
#[tokio::test]
async fn in_swift() {
    let golden = Golden::read();
    let lab = Swift::lab();
    let container = Swift::fresh_name("golden");
    // The original makes the container with its metadata or without.
    lab.create(&container);
    let headers: Vec<_> = golden
        .headers
        .iter()
        .map(|(name, value)| (name.as_str(), value.as_str()))
        .collect();
    assert_eq!(lab.request("POST", &container, &headers, b"").status, 204);
    for (name, body) in &golden.objects {
        lab.put(&container, name, body);
    }
    let credentials = Credentials::v1(&*lab.auth_url, &*lab.user, &*lab.key);
    let store = Arc::new(SwiftStore::new(credentials, &container, MAX_OBJECT).unwrap());
    check(&golden, store, async || lab.objects(&container)).await;
    lab.remove(&container);
}

fn sha256(bytes: &[u8]) -> String {
    // coreutils rather than a crate for one sum.
    use std::io::Write;
    use std::process::{Command, Stdio};
    let mut child = Command::new("sha256sum")
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .spawn()
        .unwrap();
    child.stdin.take().unwrap().write_all(bytes).unwrap();
    let text = String::from_utf8(child.wait_with_output().unwrap().stdout).unwrap();
    text.split(' ').next().unwrap().to_owned()
}
