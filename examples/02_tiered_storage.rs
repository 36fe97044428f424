//! Tiered storage alone: 64 blocks on SSD behind a budget of 16 slots, without a model.
//!
//! Blocks are changed in a sweep, the way training does, under each cache policy; then the store
//! is committed, a change after the commit is lost on purpose, and the store opens at the commit.
//!
//! `cargo run --example 02_tiered_storage`

use semoe::base::{BlockId, Part, Result};
use semoe::storage::disk::IoOptions;
use semoe::storage::hierarchy::{Access, Outcome, SlotClass, Want};
use semoe::storage::policy::{PolicyConfig, PolicyKind};
use semoe::storage::store::{ClassSpec, Store, StoreOptions, StoreSpec};
use semoe::storage::tiers::Tiers;
use std::path::Path;

const BLOCKS: usize = 64;
const SLOTS: u32 = 16;
const BYTES: u64 = 64 << 10;
const SWEEPS: u64 = 4;

fn spec() -> StoreSpec {
    let weights = ClassSpec { part: Part::Weights, block_bytes: BYTES, blocks: BLOCKS as u64 };
    StoreSpec { classes: vec![weights], keep: 0, identity: "example".into() }
}

fn open(store: Store, kind: PolicyKind) -> Result<Tiers> {
    let slots = [SlotClass { part: Part::Weights, slot_bytes: BYTES, slots: SLOTS }];
    Tiers::new(store, &slots, &PolicyConfig::of(kind), &IoOptions::default())
}

/// Adds one to every byte of every block, `SWEEPS` times; `access` of the first sweep creates.
fn sweep(tiers: &mut Tiers) -> Result<()> {
    for at in 0..SWEEPS * BLOCKS as u64 {
        let (step, expert) = (1 + at / BLOCKS as u64, (at % BLOCKS as u64) as usize);
        let block = BlockId::weights(0, expert);
        let access = if step == 1 { Access::Create } else { Access::Update };
        // A sweep knows when it comes round again: the policy `planned` makes use of it.
        let want = Want { block, access, next_use: at + BLOCKS as u64 };
        tiers.with(step, &[want], |lease| {
            for (_, bytes) in lease.split()? {
                let bytes = bytes.write()?;
                if step == 1 {
                    bytes.fill(0);
                }
                bytes.iter_mut().for_each(|byte| *byte += 1);
            }
            Ok(((), vec![(block, Outcome::Dirty)]))
        })?;
    }
    Ok(())
}

fn first_byte(tiers: &mut Tiers, expert: usize) -> Result<u8> {
    let block = BlockId::weights(0, expert);
    let want = Want { block, access: Access::Read, next_use: u64::MAX };
    tiers.with(0, &[want], |lease| Ok((lease.bytes(block)?[0], Vec::new())))
}

fn run(dir: &Path) -> Result<()> {
    println!("{BLOCKS} blocks of 64 KiB, {SLOTS} slots, {SWEEPS} sweeps");
    for kind in PolicyKind::ALL {
        let dir = dir.join(kind.name());
        let mut tiers = open(Store::create(&dir, &spec(), &StoreOptions::default())?, kind)?;
        sweep(&mut tiers)?;
        tiers.commit(SWEEPS, b"four sweeps")?;
        let stats = tiers.stats().total();
        println!(
            "{:>8}: {:>3} hits, {:>3} misses; read {:>5} KiB, wrote {:>5} KiB; {}",
            kind.name(),
            stats.hits,
            stats.misses,
            stats.bytes_loaded >> 10,
            stats.bytes_written >> 10,
            tiers.io()
        );
    }
    let dir = dir.join(PolicyKind::Planned.name());
    let store = Store::open(&dir, &StoreOptions::default())?;
    println!("opened at commit {:?}", store.committed());
    let mut tiers = open(store, PolicyKind::Planned)?;
    let block = BlockId::weights(0, 7);
    let want = Want { block, access: Access::Update, next_use: 0 };
    tiers.with(SWEEPS + 1, &[want], |lease| {
        for (_, bytes) in lease.split()? {
            bytes.write()?.fill(99);
        }
        Ok(((), vec![(block, Outcome::Dirty)]))
    })?;
    println!("block 7 before the restart: {}", first_byte(&mut tiers, 7)?);
    drop(tiers);
    let mut tiers = open(Store::open(&dir, &StoreOptions::default())?, PolicyKind::Planned)?;
    println!("block 7 after it, uncommitted changes gone: {}", first_byte(&mut tiers, 7)?);
    Ok(())
}

fn main() -> Result<()> {
    let dir = std::env::temp_dir().join(format!("semoe-tiers-{}", std::process::id()));
    let result = run(&dir);
    drop(std::fs::remove_dir_all(dir));
    result
}
