//! A detachment that found no router, left where the next one looks (router/tombstones.py says how it reads it).

use std::fs::{self, DirBuilder, OpenOptions};
use std::io::{self, Write};
use std::os::unix::fs::{DirBuilderExt, OpenOptionsExt};
use std::path::{Path, PathBuf};

use serde_json::json;

use crate::router::Began;

/// What could not be written, and why.
pub struct Unwritten {
    pub path: PathBuf,
    pub error: io::Error,
}

/// Write a tombstone beside the router's socket, whole or not at all.
pub fn leave(socket_path: &str, sandbox_id: &str, if_name: &str) -> Result<(), Unwritten> {
    let directory = Path::new(socket_path).parent().unwrap_or(Path::new("/")).join("tombstones");
    make_directory(&directory, 0o700)?;
    let detached_ns = Began::now().ns();
    let content = json!({"sandbox_id": sandbox_id, "if_name": if_name, "detached_ns": detached_ns}).to_string();
    let name = format!("{detached_ns}-{}", std::process::id());
    let draft = directory.join(format!("{name}.draft"));
    // `create_new` follows no link.
    let file = OpenOptions::new().write(true).create_new(true).mode(0o600).open(&draft);
    file.and_then(|mut file| file.write_all(content.as_bytes()))
        .and_then(|()| fs::rename(&draft, directory.join(format!("{name}.json"))))
        .map_err(|error| Unwritten { path: draft, error })
}

/// Make a directory, and those above it as the umask has them; name the one that cannot be made.
fn make_directory(path: &Path, mode: u32) -> Result<(), Unwritten> {
    if let Some(parent) = path.parent()
        && !parent.exists()
    {
        make_directory(parent, 0o777)?;
    }
    match DirBuilder::new().mode(mode).create(path) {
        Err(error) if !path.is_dir() => Err(Unwritten { path: path.to_owned(), error }),
        _ => Ok(()),
    }
}
