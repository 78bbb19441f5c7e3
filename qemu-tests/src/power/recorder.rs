//! Serves a machine's disk and variable store over the NBD protocol (the "fixed newstyle" handshake and simple replies of its
//! specification), and logs every write and flush. One process serves both, so the log has their common order. The machine is one of
//! ours on the same host; still, nothing it sends makes the server take more than a bounded request.

use std::fs::{File, OpenOptions};
use std::io::{self, BufWriter, Read, Write};
use std::os::unix::fs::FileExt;
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use super::log::{Device, LARGEST, Writer};
use crate::error::{Error, FileContext};

/// The name under which the disk is served.
pub const DISK: &str = "disk";
/// The name under which the variable store is served.
pub const VARIABLES: &str = "variables";

const OPTION_MAGIC: u64 = 0x4948_4156_454f_5054;
const REPLY_MAGIC: u64 = 0x0003_e889_0455_65a9;
const REQUEST: u32 = 0x2560_9513;
const REPLY: u32 = 0x6744_6698;
/// Flags, flush, FUA and write-zeroes.
const EXPORT_FLAGS: u16 = 1 | 4 | 8 | 64;
/// The longest option a client may send.
const OPTION: usize = 4096;

/// The recorder; it serves until it is dropped.
#[derive(Debug)]
pub struct Recorder {
    shared: Arc<Shared>,
    socket: PathBuf,
}

#[derive(Debug)]
struct Shared {
    log: Mutex<Writer<BufWriter<File>>>,
    exports: [Export; 2],
    ended: AtomicBool,
    /// Why something was not logged; the log is worthless then.
    failed: AtomicBool,
}

#[derive(Debug)]
struct Export {
    name: &'static str,
    device: Device,
    file: File,
    size: u64,
}

impl Recorder {
    /// Serves two files on a socket.
    pub fn start(socket: &Path, log: &Path, disk: &Path, variables: &Path) -> Result<Self, Error> {
        let export = |name, device, path: &Path| {
            let file = OpenOptions::new().read(true).write(true).open(path).on("open", path)?;
            let size = file.metadata().on("read the size of", path)?.len();
            Ok::<_, Error>(Export { name, device, file, size })
        };
        let exports = [export(DISK, Device::Disk, disk)?, export(VARIABLES, Device::Variables, variables)?];
        let log = Mutex::new(Writer::new(BufWriter::with_capacity(1 << 20, File::create(log).on("create", log)?)));
        let shared = Arc::new(Shared { log, exports, ended: AtomicBool::new(false), failed: AtomicBool::new(false) });
        let listener = UnixListener::bind(socket).on("listen on", socket)?;
        let serving = shared.clone();
        std::thread::spawn(move || {
            for stream in listener.incoming().flatten() {
                if serving.ended.load(Ordering::SeqCst) {
                    return;
                }
                let shared = serving.clone();
                std::thread::spawn(move || {
                    // A machine whose plug is pulled ends its connection in the middle of anything.
                    let _ = serve(&shared, stream);
                });
            }
        });
        Ok(Self { shared, socket: socket.to_owned() })
    }

    /// Where a machine finds it.
    pub fn socket(&self) -> &Path {
        &self.socket
    }

    /// Names this point in time in the log.
    pub fn mark(&self, text: &str) -> Result<(), Error> {
        self.shared.log().mark(text).on("log to", &self.socket)?;
        if self.shared.failed.load(Ordering::SeqCst) {
            return Err(io::Error::other("a write could not be logged")).on("log to", &self.socket);
        }
        Ok(())
    }
}

impl Drop for Recorder {
    fn drop(&mut self) {
        self.shared.ended.store(true, Ordering::SeqCst);
        // Wakes the thread that accepts; one that is gone already is no loss.
        let _ = UnixStream::connect(&self.socket);
        let _ = std::fs::remove_file(&self.socket);
    }
}

impl Shared {
    fn log(&self) -> MutexGuard<'_, Writer<BufWriter<File>>> {
        // No code panics while it holds the lock.
        self.log.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

fn serve(shared: &Shared, mut stream: UnixStream) -> io::Result<()> {
    let Some(export) = greet(shared, &mut stream)? else { return Ok(()) };
    let mut buffer = Vec::new();
    loop {
        let header: [u8; 28] = read_array(&mut stream)?;
        let (magic, flags, kind) = (be32(&header[..4]), be16(&header[4..6]), be16(&header[6..8]));
        let (offset, length) = (be64(&header[16..24]), u64::from(be32(&header[24..28])));
        if magic != REQUEST {
            return Err(io::ErrorKind::InvalidData.into());
        }
        let within = offset.checked_add(length).is_some_and(|end| end <= export.size);
        let through = flags & 1 != 0;
        let mut answer = Vec::new();
        let outcome = match kind {
            0 if within && length <= LARGEST => {
                answer.resize(length as usize, 0);
                export.file.read_exact_at(&mut answer, offset)
            }
            1 if within && length <= LARGEST => {
                buffer.resize(length as usize, 0);
                stream.read_exact(&mut buffer)?;
                let mut log = shared.log();
                let logged = log.write(export.device, offset, &buffer, through);
                logged.and_then(|()| export.file.write_all_at(&buffer, offset)).inspect_err(|_| shared.failed.store(true, Ordering::SeqCst))
            }
            2 => return Ok(()),
            3 => shared.log().flush(export.device).inspect_err(|_| shared.failed.store(true, Ordering::SeqCst)),
            6 if within => {
                let mut log = shared.log();
                let logged = log.zero(export.device, offset, length, through);
                logged.and_then(|()| zero(&export.file, offset, length)).inspect_err(|_| shared.failed.store(true, Ordering::SeqCst))
            }
            // What a write that is too long sends can't be told from the next request.
            1 => return Err(io::ErrorKind::InvalidData.into()),
            _ => Err(io::ErrorKind::InvalidInput.into()),
        };
        let error: u32 = match outcome {
            Ok(()) => 0,
            Err(error) if error.kind() == io::ErrorKind::InvalidInput => 22,
            Err(_) => 5,
        };
        let mut reply = [&REPLY.to_be_bytes()[..], &error.to_be_bytes(), &header[8..16]].concat();
        if error == 0 {
            reply.append(&mut answer);
        }
        stream.write_all(&reply)?;
    }
}

fn zero(file: &File, mut offset: u64, mut length: u64) -> io::Result<()> {
    let zeroes = vec![0; 1 << 20];
    while length > 0 {
        let piece = length.min(zeroes.len() as u64);
        // A hole stays one: disks are large, and what they hold is little.
        let mut old = vec![0; piece as usize];
        file.read_exact_at(&mut old, offset)?;
        if old.iter().any(|byte| *byte != 0) {
            file.write_all_at(&zeroes[..piece as usize], offset)?;
        }
        offset += piece;
        length -= piece;
    }
    Ok(())
}

/// The handshake; what the client wants to use.
fn greet<'a>(shared: &'a Shared, stream: &mut UnixStream) -> io::Result<Option<&'a Export>> {
    stream.write_all(&[&b"NBDMAGIC"[..], &OPTION_MAGIC.to_be_bytes(), &3u16.to_be_bytes()].concat())?;
    let _flags: [u8; 4] = read_array(stream)?;
    loop {
        let header: [u8; 16] = read_array(stream)?;
        let (magic, option, length) = (be64(&header[..8]), be32(&header[8..12]), be32(&header[12..16]) as usize);
        if magic != OPTION_MAGIC || length > OPTION {
            return Err(io::ErrorKind::InvalidData.into());
        }
        let mut data = vec![0; length];
        stream.read_exact(&mut data)?;
        let mut reply = |kind: u32, data: &[u8]| {
            let head =
                [&REPLY_MAGIC.to_be_bytes()[..], &option.to_be_bytes(), &kind.to_be_bytes(), &(data.len() as u32).to_be_bytes()].concat();
            stream.write_all(&[&head[..], data].concat())
        };
        match option {
            // NBD_OPT_ABORT
            2 => {
                reply(1, &[])?;
                return Ok(None);
            }
            // NBD_OPT_INFO and NBD_OPT_GO
            6 | 7 => {
                let name = data.get(..4).map(be32).and_then(|length| data.get(4..4 + length as usize));
                let Some(export) = shared.exports.iter().find(|export| Some(export.name.as_bytes()) == name) else {
                    reply(1 << 31 | 6, &[])?;
                    continue;
                };
                reply(3, &[&[0, 0], &export.size.to_be_bytes()[..], &EXPORT_FLAGS.to_be_bytes()].concat())?;
                let blocks = [512u32, 4096, LARGEST as u32].map(u32::to_be_bytes).concat();
                reply(3, &[&[0, 3], &blocks[..]].concat())?;
                reply(1, &[])?;
                if option == 7 {
                    return Ok(Some(export));
                }
            }
            _ => reply(1 << 31 | 1, &[])?,
        }
    }
}

fn read_array<const N: usize>(stream: &mut UnixStream) -> io::Result<[u8; N]> {
    let mut bytes = [0; N];
    stream.read_exact(&mut bytes)?;
    Ok(bytes)
}

fn be16(bytes: &[u8]) -> u16 {
    bytes.iter().fold(0, |number, byte| number << 8 | u16::from(*byte))
}

fn be32(bytes: &[u8]) -> u32 {
    bytes.iter().fold(0, |number, byte| number << 8 | u32::from(*byte))
}

fn be64(bytes: &[u8]) -> u64 {
    bytes.iter().fold(0, |number, byte| number << 8 | u64::from(*byte))
}

#[cfg(test)]
mod tests {
    use super::super::log::{self, Event};
    use super::*;

    /// A client that speaks as the specification says.
    struct Client(UnixStream);

    impl Client {
        fn open(socket: &Path, name: &str) -> Self {
            let mut stream = UnixStream::connect(socket).unwrap();
            let greeting: [u8; 18] = read_array(&mut stream).unwrap();
            assert_eq!(&greeting[..8], b"NBDMAGIC");
            stream.write_all(&3u32.to_be_bytes()).unwrap();
            let mut client = Client(stream);
            // Something that is not offered is refused, and the talk goes on.
            assert_eq!(client.option(8, &[]), [(1 << 31 | 1, Vec::new())]);
            let mut data = (name.len() as u32).to_be_bytes().to_vec();
            data.extend(name.as_bytes());
            data.extend([0, 0]);
            let replies = client.option(7, &data);
            assert_eq!(replies.last().unwrap().0, 1);
            client
        }

        fn option(&mut self, option: u32, data: &[u8]) -> Vec<(u32, Vec<u8>)> {
            let head = [&OPTION_MAGIC.to_be_bytes()[..], &option.to_be_bytes(), &(data.len() as u32).to_be_bytes(), data].concat();
            self.0.write_all(&head).unwrap();
            let mut replies = Vec::new();
            loop {
                let header: [u8; 20] = read_array(&mut self.0).unwrap();
                let mut data = vec![0; be32(&header[16..]) as usize];
                self.0.read_exact(&mut data).unwrap();
                replies.push((be32(&header[12..16]), data));
                if replies.last().unwrap().0 != 3 {
                    return replies;
                }
            }
        }

        fn request(&mut self, kind: u16, offset: u64, length: u32, data: &[u8], wanted: usize) -> (u32, Vec<u8>) {
            let head =
                [&REQUEST.to_be_bytes()[..], &[0, 0], &kind.to_be_bytes(), &[7; 8], &offset.to_be_bytes(), &length.to_be_bytes(), data];
            self.0.write_all(&head.concat()).unwrap();
            let header: [u8; 16] = read_array(&mut self.0).unwrap();
            assert_eq!(&header[8..], [7; 8]);
            let error = be32(&header[4..8]);
            let mut data = vec![0; if error == 0 { wanted } else { 0 }];
            self.0.read_exact(&mut data).unwrap();
            (error, data)
        }
    }

    #[test]
    fn what_is_written_is_kept_and_logged_in_the_order_of_both_devices() {
        let dir = tempfile::tempdir().unwrap();
        let path = |name: &str| dir.path().join(name);
        for (name, size) in [("disk", 1 << 20), ("vars", 2048)] {
            File::create(path(name)).unwrap().set_len(size).unwrap();
        }
        let recorder = Recorder::start(&path("socket"), &path("log"), &path("disk"), &path("vars")).unwrap();
        let (mut disk, mut vars) = (Client::open(recorder.socket(), DISK), Client::open(recorder.socket(), VARIABLES));
        assert_eq!(disk.request(1, 512, 512, &[5; 512], 0).0, 0);
        assert_eq!(disk.request(3, 0, 0, &[], 0).0, 0);
        assert_eq!(vars.request(1, 0, 512, &[6; 512], 0).0, 0);
        assert_eq!(disk.request(6, 512, 256, &[], 0).0, 0);
        assert_eq!(disk.request(0, 512, 512, &[], 512).1, [vec![0; 256], vec![5; 256]].concat());
        assert_eq!(disk.request(0, 1 << 20, 512, &[], 0).0, 22, "behind the end");
        assert_eq!(vars.request(1, 2048, 0, &[], 0).0, 0, "at the end there is room for nothing");
        recorder.mark("done").unwrap();
        let kinds: Vec<_> = log::read(&mut File::open(path("log")).unwrap())
            .unwrap()
            .into_iter()
            .map(|event| match event {
                Event::Write { device, offset, length, .. } => format!("{device:?} {offset}+{length}"),
                Event::Zero { offset, length, .. } => format!("zero {offset}+{length}"),
                Event::Flush(device) => format!("flush {device:?}"),
                Event::Mark(text) => text,
            })
            .collect();
        assert_eq!(kinds, ["Disk 512+512", "flush Disk", "Variables 0+512", "zero 512+256", "Variables 2048+0", "done"]);
    }
}
