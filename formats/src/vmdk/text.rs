//! The descriptor of the disks that are written.
//!
//! Invariant: the same disk gives the same text, shorter than [`DESCRIPTOR_SECTORS`].

use std::fmt::Write;

use crate::export::layout::Identity;

/// As QEMU and VMware reserve them.
pub(super) const DESCRIPTOR_SECTORS: u64 = 20;
/// Of the geometry that every adapter but IDE shows.
const HEADS: u64 = 255;
const SECTORS_PER_TRACK: u64 = 63;
/// These mean "no parent" and "never written".
const RESERVED_FROM: u32 = 0xffff_fffe;

pub(super) fn descriptor(create_type: &str, sectors: u64, identity: Identity) -> Vec<u8> {
    let cid = identity.number();
    let cid = if cid >= RESERVED_FROM { 1 } else { cid };
    let cylinders = (sectors / (HEADS * SECTORS_PER_TRACK)).min(u64::from(u32::MAX));
    let mut uuid = String::new();
    for (place, byte) in identity.uuid("vmdk").iter().enumerate() {
        let gap = match place {
            0 => "",
            8 => "-",
            _ => " ",
        };
        // Writing to a string cannot fail.
        let _ = write!(uuid, "{gap}{byte:02x}");
    }
    format!(
        "# Disk DescriptorFile\n\
         version=1\n\
         CID={cid:08x}\n\
         parentCID=ffffffff\n\
         createType=\"{create_type}\"\n\
         \n\
         # Extent description\n\
         RW {sectors} SPARSE \"disk.vmdk\"\n\
         \n\
         # The Disk Data Base\n\
         #DDB\n\
         \n\
         ddb.adapterType = \"lsilogic\"\n\
         ddb.geometry.cylinders = \"{cylinders}\"\n\
         ddb.geometry.heads = \"{HEADS}\"\n\
         ddb.geometry.sectors = \"{SECTORS_PER_TRACK}\"\n\
         ddb.uuid = \"{uuid}\"\n\
         ddb.virtualHWVersion = \"8\"\n"
    )
    .into_bytes()
}
