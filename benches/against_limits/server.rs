//! The servers that are measured, each a process of its own.

use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::Duration;

use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use tokio::net::UnixStream;
use tokio::time::sleep;

use crate::Failure;

const SWIFTNBD: &str = env!("CARGO_BIN_EXE_swiftnbd");
const VOLUME: &str = "bench";

/// What kind of volume is measured.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Volume {
    /// Format 1, with objects of so many bytes.
    One {
        object_size: u64,
    },
    Two {
        encrypted: bool,
    },
}

impl Volume {
    pub fn name(self) -> String {
        match self {
            Volume::One { object_size } => format!("format 1, {} objects", short(object_size)),
            Volume::Two { encrypted: false } => "format 2".to_owned(),
            Volume::Two { encrypted: true } => "format 2, encrypted".to_owned(),
        }
    }

    /// Objects in which the limit is measured beside it: as large as its own.
    pub fn object_size(self) -> u64 {
        match self {
            Volume::One { object_size } => object_size,
            Volume::Two { .. } => SEGMENT,
        }
    }
}

/// The size of a segment in format 2.
pub const SEGMENT: u64 = 8 << 20;

/// `64 KiB` for 65536.
pub fn short(bytes: u64) -> String {
    let (unit, name) = match bytes {
        0..0x10_0000 => (10, "KiB"),
        0x10_0000..0x4000_0000 => (20, "MiB"),
        0x4000_0000..0x100_0000_0000 => (30, "GiB"),
        _ => (40, "TiB"),
    };
    format!("{} {name}", bytes >> unit)
}

/// A process that is stopped when this goes away.
struct Running(Child);

impl Drop for Running {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

/// A volume in a container of its own, and what is needed to serve it.
pub struct Made {
    directory: tempfile::TempDir,
    pub container: String,
}

impl Made {
    /// Sets it up, on the Swift that is reached at `host`.
    pub fn setup(volume: Volume, size: u64, host: &str) -> Result<Made, Failure> {
        let made = Made {
            directory: tempfile::tempdir()?,
            container: format!("{VOLUME}-{:016x}", fastrand::u64(..)),
        };
        let phrase = made.directory.path().join("passphrase");
        write_secret(&phrase, "correct horse battery staple\n")?;
        made.reached_at(host, volume == Volume::Two { encrypted: true })?;
        let mut setup = made.swiftnbd();
        setup.args(["setup", VOLUME, "--size", &size.to_string()]);
        match volume {
            Volume::One { object_size } => {
                setup.args(["--format", "1", "--object-size", &object_size.to_string()]);
            }
            Volume::Two { encrypted: false } => {
                setup.args(["--format", "2"]);
            }
            Volume::Two { encrypted: true } => {
                setup.args(["--format", "2", "--encrypt", "--passphrase-file"]);
                setup.arg(&phrase);
            }
        }
        made.succeed(setup, "setup")?;
        Ok(made)
    }

    /// Writes the configuration; from now on, Swift is found at `host`.
    pub fn reached_at(&self, host: &str, encrypted: bool) -> Result<(), Failure> {
        let variable = |name: &str| std::env::var(format!("SWIFTNBD_LAB_{name}"));
        let mut config = format!(
            "[swift]\nauth_url = {:?}\nusername = {:?}\npassword = {:?}\n\
             [volumes.{VOLUME}]\ncontainer = {:?}\n",
            variable("AUTH")?.replace("127.0.0.1", host),
            variable("USER")?,
            variable("KEY")?,
            self.container,
        );
        if encrypted {
            let phrase = self.directory.path().join("passphrase");
            config += &format!("passphrase_file = {phrase:?}\n");
        }
        write_secret(&self.directory.path().join("swiftnbd.toml"), &config)
    }

    /// `swiftnbd serve`, as soon as a client can connect.
    pub async fn serve(self) -> Result<Server, Failure> {
        let socket = self.directory.path().join("socket");
        let mut serve = self.swiftnbd();
        serve.args(["serve", VOLUME, "--unix"]).arg(&socket);
        // It prints its address.
        serve.stdout(Stdio::null()).stderr(self.log()?);
        let process = Running(serve.spawn()?);
        let mut server = Server {
            process,
            made: self,
            socket,
        };
        server.wait().await?;
        Ok(server)
    }

    /// Removes the volume from Swift.
    pub fn delete(self) -> Result<(), Failure> {
        let mut delete = self.swiftnbd();
        delete.args(["delete", VOLUME, "--yes"]);
        delete.stdout(Stdio::null());
        self.succeed(delete, "delete")
    }

    fn swiftnbd(&self) -> Command {
        let mut command = Command::new(SWIFTNBD);
        command
            .arg("--config")
            .arg(self.directory.path().join("swiftnbd.toml"));
        command
    }

    fn log(&self) -> Result<std::fs::File, Failure> {
        Ok(std::fs::File::create(self.directory.path().join("log"))?)
    }

    fn said(&self) -> String {
        std::fs::read_to_string(self.directory.path().join("log")).unwrap_or_default()
    }

    fn succeed(&self, mut command: Command, what: &str) -> Result<(), Failure> {
        let done = command.stderr(self.log()?).status()?;
        if done.success() {
            return Ok(());
        }
        Err(format!("swiftnbd {what}: {done}\n{}", self.said()).into())
    }
}

fn write_secret(path: &Path, text: &str) -> Result<(), Failure> {
    std::fs::write(path, text)?;
    std::fs::set_permissions(path, std::os::unix::fs::PermissionsExt::from_mode(0o600))?;
    Ok(())
}

/// `swiftnbd serve` of one volume.
pub struct Server {
    process: Running,
    made: Made,
    socket: PathBuf,
}

impl Server {
    pub fn socket(&self) -> &Path {
        &self.socket
    }

    pub fn container(&self) -> &str {
        &self.made.container
    }

    /// Ends it in order: everything is in Swift then.
    pub async fn end(mut self) -> Result<Made, Failure> {
        kill(Pid::from_raw(self.process.0.id() as i32), Signal::SIGTERM)?;
        let done = loop {
            if let Some(done) = self.process.0.try_wait()? {
                break done;
            }
            sleep(Duration::from_millis(20)).await;
        };
        if done.success() {
            Ok(self.made)
        } else {
            Err(format!("serve: {done}\n{}", self.made.said()).into())
        }
    }

    /// Processor time it has used, user and system.
    pub fn cpu_seconds(&self) -> f64 {
        let path = format!("/proc/{}/stat", self.process.0.id());
        let stat = std::fs::read_to_string(path).unwrap_or_default();
        // proc(5): utime and stime are fields 14 and 15; the name may hold blanks.
        let after_name = stat.rsplit(')').next().unwrap_or_default();
        let ticks = after_name.split_whitespace().skip(11).take(2);
        ticks
            .filter_map(|field| field.parse::<f64>().ok())
            .sum::<f64>()
            / 100.0
    }

    /// The most memory that it has had, in bytes.
    pub fn peak_memory(&self) -> Result<u64, Failure> {
        let path = format!("/proc/{}/status", self.process.0.id());
        let status = std::fs::read_to_string(path)?;
        let peak = status.lines().find_map(|line| line.strip_prefix("VmHWM:"));
        let kib = peak.and_then(|rest| rest.split_whitespace().next());
        Ok(kib.ok_or("no VmHWM")?.parse::<u64>()? << 10)
    }

    async fn wait(&mut self) -> Result<(), Failure> {
        for _ in 0..60_000 {
            if UnixStream::connect(&self.socket).await.is_ok() {
                return Ok(());
            }
            if let Some(done) = self.process.0.try_wait()? {
                return Err(format!("serve: {done}\n{}", self.made.said()).into());
            }
            sleep(Duration::from_millis(1)).await;
        }
        Err(format!("serve does not listen\n{}", self.made.said()).into())
    }
}

/// nbdkit's memory plugin.
pub struct Nbdkit {
    _process: Running,
    directory: tempfile::TempDir,
}

impl Nbdkit {
    pub async fn memory(size: u64) -> Result<Nbdkit, Failure> {
        let directory = tempfile::tempdir()?;
        let process = Command::new("nbdkit")
            .args(["--foreground", "--unix"])
            .arg(directory.path().join("socket"))
            .arg("memory")
            .arg(size.to_string())
            .spawn()?;
        let nbdkit = Nbdkit {
            _process: Running(process),
            directory,
        };
        for _ in 0..5000 {
            if UnixStream::connect(nbdkit.socket()).await.is_ok() {
                return Ok(nbdkit);
            }
            sleep(Duration::from_millis(2)).await;
        }
        Err("nbdkit does not listen".into())
    }

    pub fn socket(&self) -> PathBuf {
        self.directory.path().join("socket")
    }
}
