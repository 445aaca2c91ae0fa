//! One attachment after another in one test program.

use std::sync::Mutex;

use swiftnbd::image::log::Who;
use swiftnbd::image::log::format::AttachId;

static BEFORE: Mutex<Vec<AttachId>> = Mutex::new(Vec::new());

/// A new attachment that takes all those before it for dead, rightly or not, and waits
/// for no lease.
pub fn who(host: &str) -> Who {
    let mut before = BEFORE.lock().unwrap();
    let who = Who {
        dead: before.clone(),
        ..Who::new(host, 1_700_000_000)
    };
    before.insert(0, who.attach);
    before.truncate(64);
    who
}
