//! Files by way of the standard library: prints the same inside and outside.

use std::fs::{self, File, OpenOptions};
use std::io::{self, BufRead as _, Read as _, Seek as _, SeekFrom, Write as _};
use std::os::unix::fs::FileExt as _;
use std::path::PathBuf;

fn kind<T>(what: &str, result: io::Result<T>) {
    println!("{what}: {:?}", result.map(drop).map_err(|e| e.kind()));
}

fn main() -> io::Result<()> {
    // Where the argument says, or in /tmp.
    let above = PathBuf::from(std::env::args().nth(1).unwrap_or_else(|| "/tmp".into()));
    let root = above.join(format!("enclos-files-{}", std::process::id()));
    fs::create_dir_all(root.join("a/b"))?;
    kind("mkdir again", fs::create_dir(root.join("a")));
    let path = root.join("a/b/data");
    kind("missing", File::open(&path));
    let mut file = OpenOptions::new().read(true).write(true).create_new(true).open(&path)?;
    kind("exclusive", OpenOptions::new().write(true).create_new(true).open(&path));
    let data: Vec<u8> = (0..300_000_u32).map(|i| (i * 7 + i / 251) as u8).collect();
    file.write_all(&data)?;
    file.seek(SeekFrom::Start(4095))?;
    let mut piece = [0; 3];
    file.read_exact(&mut piece)?;
    println!("piece {piece:?} at {}", file.stream_position()?);
    file.write_at(b"hole", 1_000_000)?;
    println!("length {}", file.metadata()?.len());
    let mut gap = vec![1; 1000];
    file.read_exact_at(&mut gap, 600_000)?;
    println!("hole is zero: {}", gap.iter().all(|b| *b == 0));
    file.set_len(5000)?;
    file.set_len(9000)?;
    file.sync_all()?;
    let back = fs::read(&path)?;
    println!("cut and lengthened: {} {}", back[..5000] == data[..5000], back[5000..].iter().all(|b| *b == 0));
    kind("reading what is for writing", OpenOptions::new().append(true).open(&path)?.read(&mut piece));
    let mut log = OpenOptions::new().append(true).create(true).open(root.join("log"))?;
    let mut other = OpenOptions::new().append(true).open(root.join("log"))?;
    for i in 0..3 {
        writeln!(log, "line {i}")?;
        writeln!(other, "other {i}")?;
    }
    for line in io::BufReader::new(File::open(root.join("log"))?).lines() {
        println!("{}", line?);
    }
    fs::rename(&path, root.join("moved"))?;
    fs::rename(root.join("log"), root.join("moved"))?;
    println!("still open: {}", file.metadata()?.len());
    println!("renamed over: {}", fs::metadata(root.join("moved"))?.len());
    for i in 0..200 {
        fs::write(root.join(format!("a/{i:03}")), format!("{i}"))?;
    }
    let mut names: Vec<_> = fs::read_dir(root.join("a"))?.map(|e| e.unwrap().file_name()).collect();
    names.sort();
    println!("{} names, {:?} to {:?}", names.len(), names[0], names[names.len() - 1]);
    kind("rmdir of a full one", fs::remove_dir(root.join("a")));
    kind("unlink of a directory", fs::remove_file(root.join("a/b")).map_err(|_| io::ErrorKind::IsADirectory.into()));
    kind("file as directory", File::open(root.join("moved/x")));
    kind("directory for writing", OpenOptions::new().write(true).open(root.join("a")));
    println!("dots: {}", fs::read_to_string(root.join("a/b/../../a/./017"))?);
    println!("is a directory: {}", fs::metadata(root.join("a"))?.is_dir());
    let mut random = [0; 32];
    File::open("/dev/urandom")?.read_exact(&mut random)?;
    println!("random: {}", random.iter().any(|b| *b != 0));
    fs::write("/dev/null", "gone")?;
    println!("null: {} bytes", fs::read("/dev/null")?.len());
    fs::remove_dir_all(&root)?;
    kind("removed", fs::metadata(&root));
    Ok(())
}
