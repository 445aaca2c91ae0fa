//! Block devices as the kernel shows them: `/sys/block/nbdN`, `/proc/self/mountinfo`,
//! `/proc/swaps`, and the device nodes.

use std::fs::{self, File, OpenOptions};
use std::io;
use std::os::unix::fs::{FileTypeExt, MetadataExt, OpenOptionsExt};
use std::path::{Path, PathBuf};
use std::process::Command;

use crate::config::NbdDevice;
use crate::error::{Error, Exit, Result};

/// Major number of nbd devices; `Documentation/admin-guide/devices.txt`.
pub const NBD_MAJOR: u64 = 43;

/// The most bytes that the kernel may put into one request, in KiB. It starts at
/// 128 on older kernels, which cuts a large write into many small ones.
const MAX_SECTORS_KB: u32 = 1024;

nix::ioctl_none!(
    /// `BLKFLSBUF` of `include/uapi/linux/fs.h`: writes a device's buffers out and
    /// drops them.
    blkflsbuf,
    0x12,
    97
);

/// Makes sure that the nbd driver is there, loading its module if it is not.
pub fn ensure_driver() -> Result<()> {
    if Path::new("/sys/block/nbd0").exists() || Path::new("/sys/module/nbd").exists() {
        return Ok(());
    }
    let loaded = Command::new("modprobe").arg("nbd").output();
    if matches!(&loaded, Ok(output) if output.status.success()) {
        return Ok(());
    }
    let why = match loaded {
        Ok(output) => String::from_utf8_lossy(&output.stderr).trim().to_owned(),
        Err(error) => format!("modprobe: {error}"),
    };
    Err(Error::new(
        Exit::NotFound,
        format!("the kernel's nbd driver cannot be loaded: {why}"),
    )
    .hint("try `modprobe nbd`; the kernel needs CONFIG_BLK_DEV_NBD"))
}

/// The directory of a device in sysfs.
fn directory(device: NbdDevice) -> PathBuf {
    PathBuf::from(format!("/sys/block/nbd{}", device.index()))
}

fn attribute(device: NbdDevice, name: &str) -> Option<String> {
    let text = fs::read_to_string(directory(device).join(name)).ok()?;
    Some(text.trim_end_matches('\n').to_owned())
}

/// Whether the kernel has this device, connected or not.
pub fn exists(device: NbdDevice) -> bool {
    directory(device).exists()
}

/// The process that connected the device, if it is connected.
pub fn connected_by(device: NbdDevice) -> Option<u32> {
    attribute(device, "pid")?.parse().ok()
}

/// Whether the device is still the one that this process has connected for this backend.
/// Kernels that show no backend are believed.
pub fn is_connected(device: NbdDevice, by: u32, for_backend: &str) -> bool {
    connected_by(device) == Some(by) && backend(device).is_none_or(|found| found == for_backend)
}

/// The backend identifier that the device was connected with.
pub fn backend(device: NbdDevice) -> Option<String> {
    attribute(device, "backend").filter(|text| !text.is_empty())
}

/// The size in bytes, 0 while it is not connected.
pub fn size(device: NbdDevice) -> u64 {
    let sectors = attribute(device, "size").and_then(|text| text.parse::<u64>().ok());
    sectors.unwrap_or(0) * 512
}

/// A device that nobody has connected, the lowest number first.
pub fn free_devices() -> Vec<NbdDevice> {
    let entries = fs::read_dir("/sys/block").into_iter().flatten().flatten();
    let mut numbers: Vec<u32> = entries
        .filter_map(|entry| {
            entry
                .file_name()
                .to_str()?
                .strip_prefix("nbd")?
                .parse()
                .ok()
        })
        .collect();
    numbers.sort_unstable();
    let devices = numbers.into_iter().filter_map(NbdDevice::new);
    devices
        .filter(|device| connected_by(*device).is_none() && size(*device) == 0)
        .collect()
}

/// Lets the kernel send larger requests. A kernel that does not is only slower.
pub fn allow_large_requests(device: NbdDevice) {
    let queue = directory(device).join("queue");
    let most = fs::read_to_string(queue.join("max_hw_sectors_kb")).unwrap_or_default();
    let most = most
        .trim()
        .parse()
        .unwrap_or(MAX_SECTORS_KB)
        .min(MAX_SECTORS_KB);
    if let Err(error) = fs::write(queue.join("max_sectors_kb"), most.to_string()) {
        tracing::debug!(%device, %error, "cannot raise max_sectors_kb");
    }
}

/// Checks that the device's node is what it should be. A plain file of that name
/// would swallow writes.
pub fn check_node(device: NbdDevice) -> io::Result<()> {
    let metadata = fs::metadata(device.path())?;
    // glibc's encoding of a device number, for majors below 4096.
    let major = (metadata.rdev() >> 8) & 0xfff;
    if metadata.file_type().is_block_device() && major == NBD_MAJOR {
        return Ok(());
    }
    Err(io::Error::other(format!(
        "{device} is not an nbd device node"
    )))
}

/// A device that nobody else uses. While it is open, nobody can mount it.
#[derive(Debug)]
pub struct Released(#[allow(dead_code, reason = "held for its lock")] File);

/// Why a device could not be taken for oneself.
#[derive(Debug)]
pub enum NotReleased {
    /// Somebody uses it: a sentence that says who.
    Held(String),
    /// It cannot be opened.
    Failed(io::Error),
}

/// Opens the device exclusively. Does not wait for anything.
pub fn release(device: NbdDevice) -> std::result::Result<Released, NotReleased> {
    let opened = OpenOptions::new()
        .read(true)
        .custom_flags(libc::O_EXCL | libc::O_CLOEXEC)
        .open(device.path());
    let file = match opened {
        Ok(file) => file,
        Err(error) if error.raw_os_error() == Some(libc::EBUSY) => {
            return Err(NotReleased::Held(holder(device)));
        }
        Err(error) => return Err(NotReleased::Failed(error)),
    };
    Ok(Released(file))
}

/// Writes out what the kernel has buffered of the device. Blocks for as long as
/// that takes, and nothing can interrupt it but the device's end: only the daemon
/// may call this, which can end the device.
pub fn write_out(device: NbdDevice) -> io::Result<()> {
    use std::os::fd::AsRawFd;
    let file = File::open(device.path())?;
    file.sync_all()?;
    // SAFETY: the descriptor is open for the length of the call, and BLKFLSBUF
    // takes no argument.
    unsafe { blkflsbuf(file.as_raw_fd()) }?;
    Ok(())
}

/// Where the device, or a partition of it, is mounted: the last of the places.
pub fn mount_point(device: NbdDevice) -> Option<String> {
    let mounts = fs::read_to_string("/proc/self/mountinfo").unwrap_or_default();
    let numbers = attribute(device, "dev");
    let partitions = partitions(device);
    let is_ours = |dev: &str, source: &str| {
        Some(dev) == numbers.as_deref()
            || partitions
                .iter()
                .any(|(partition, number)| source == partition || dev == number)
            || source == device.to_string()
    };
    mounted_at(&mounts, is_ours)
}

/// Who holds a device, as a sentence.
pub fn holder(device: NbdDevice) -> String {
    if let Some(point) = mount_point(device) {
        return format!("{device} is mounted on {point}");
    }
    let swaps = fs::read_to_string("/proc/swaps").unwrap_or_default();
    if swaps
        .lines()
        .any(|line| line.split(' ').next() == Some(&device.to_string()))
    {
        return format!("{device} is used as swap");
    }
    let holders = fs::read_dir(directory(device).join("holders"))
        .into_iter()
        .flatten()
        .flatten();
    let names: Vec<_> = holders
        .filter_map(|entry| entry.file_name().into_string().ok())
        .collect();
    if !names.is_empty() {
        return format!("{device} is used by {}", names.join(", "));
    }
    format!("{device} is used by another program, or mounted in another namespace")
}

/// The partitions of a device: node and `major:minor`.
fn partitions(device: NbdDevice) -> Vec<(String, String)> {
    let entries = fs::read_dir(directory(device))
        .into_iter()
        .flatten()
        .flatten();
    entries
        .filter_map(|entry| {
            let number = fs::read_to_string(entry.path().join("dev")).ok()?;
            entry.path().join("partition").exists().then_some(())?;
            let name = entry.file_name().into_string().ok()?;
            Some((format!("/dev/{name}"), number.trim().to_owned()))
        })
        .collect()
}

/// The last mount point in a mountinfo (proc(5)) whose device number or source
/// `is_ours`. Blanks in it are written as `\040`.
fn mounted_at(mountinfo: &str, is_ours: impl Fn(&str, &str) -> bool) -> Option<String> {
    mountinfo.lines().rev().find_map(|line| {
        let mut fields = line.split(' ');
        let (number, point) = (fields.nth(2)?, fields.nth(1)?);
        let source = line.split(" - ").nth(1)?.split(' ').nth(1)?;
        is_ours(number, source).then(|| point.replace("\\040", " "))
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn mount_points_are_found_by_number_and_by_source() {
        let mountinfo = "\
22 1 8:1 / / rw,relatime shared:1 - ext4 /dev/sda1 rw
97 22 43:0 / /mnt/my\\040disk rw,relatime shared:52 - ext4 /dev/nbd0 rw
98 22 0:40 / /mnt/btr rw - btrfs /dev/nbd1 rw,space_cache
broken line
";
        let by_number = mounted_at(mountinfo, |number, _| number == "43:0");
        assert_eq!(by_number.as_deref(), Some("/mnt/my disk"));
        let by_source = mounted_at(mountinfo, |_, source| source == "/dev/nbd1");
        assert_eq!(by_source.as_deref(), Some("/mnt/btr"));
        assert_eq!(
            mounted_at(mountinfo, |_, source| source == "/dev/nbd"),
            None
        );
    }
}
