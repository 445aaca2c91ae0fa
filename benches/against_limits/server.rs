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

/// A process that is stopped when this goes away.
struct Running(Child);

impl Drop for Running {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

/// `swiftnbd serve` over a fresh container.
pub struct Server {
    process: Running,
    directory: tempfile::TempDir,
    socket: PathBuf,
}

impl Server {
    pub async fn on_swift(object_size: u64, size: u64) -> Result<Server, Failure> {
        let directory = tempfile::tempdir()?;
        let objects = (size / object_size).to_string();
        let container = format!("{VOLUME}-{:016x}", fastrand::u64(..));
        let variable = |name: &str| std::env::var(format!("SWIFTNBD_LAB_{name}"));
        let config = format!(
            "[swift]\nauth_url = {:?}\nusername = {:?}\npassword = {:?}\n\
             [volumes.{VOLUME}]\ncontainer = {container:?}\n",
            variable("AUTH")?,
            variable("USER")?,
            variable("KEY")?
        );
        let path = directory.path().join("swiftnbd.toml");
        std::fs::write(&path, config)?;
        std::fs::set_permissions(&path, std::os::unix::fs::PermissionsExt::from_mode(0o600))?;
        let done = swiftnbd(directory.path())
            .args([
                "setup",
                VOLUME,
                &objects,
                "--object-size",
                &object_size.to_string(),
            ])
            .status()?;
        assert!(done.success(), "setup: {done}");
        Server::start(directory).await
    }

    async fn start(directory: tempfile::TempDir) -> Result<Server, Failure> {
        let socket = directory.path().join("socket");
        let process = swiftnbd(directory.path())
            .args(["serve", VOLUME, "--unix"])
            .arg(&socket)
            // It prints its address.
            .stdout(Stdio::null())
            .stderr(Stdio::null())
            .spawn()?;
        wait_for(&socket).await?;
        Ok(Server {
            process: Running(process),
            directory,
            socket,
        })
    }

    pub fn socket(&self) -> &Path {
        &self.socket
    }

    /// Ends it in order and starts it again, its memory empty.
    pub async fn restart(mut self) -> Result<Server, Failure> {
        self.stop().await?;
        Server::start(self.directory).await
    }

    pub async fn end(mut self) -> Result<(), Failure> {
        self.stop().await
    }

    async fn stop(&mut self) -> Result<(), Failure> {
        kill(Pid::from_raw(self.process.0.id() as i32), Signal::SIGTERM)?;
        while self.process.0.try_wait()?.is_none() {
            sleep(Duration::from_millis(20)).await;
        }
        Ok(())
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
}

fn swiftnbd(directory: &Path) -> Command {
    let mut command = Command::new(SWIFTNBD);
    command.arg("--config").arg(directory.join("swiftnbd.toml"));
    command
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
        wait_for(&nbdkit.socket()).await?;
        Ok(nbdkit)
    }

    pub fn socket(&self) -> PathBuf {
        self.directory.path().join("socket")
    }
}

async fn wait_for(socket: &Path) -> Result<(), Failure> {
    for _ in 0..500 {
        if UnixStream::connect(socket).await.is_ok() {
            return Ok(());
        }
        sleep(Duration::from_millis(20)).await;
    }
    Err(format!("nobody listens on {}", socket.display()).into())
}
