//! Lays a disk out as an OVA, without making the file: a descriptor of a plain machine, and the
//! disk as a `streamOptimized` VMDK.
//!
//! There is no manifest: it would have to be known before the content is, and may be left out
//! (DSP0243, 5.1). The machine has two processors, 2 GiB and one disk, for whoever imports it to
//! change.
//!
//! Invariant: the same allocation gives the same bytes, for ever; see `qcow2::layout`.

use std::ops::Range;

use super::tar::{BLOCK_BYTES, CHECKSUM_AT};
use crate::export::layout::{FileLayout, Identity};
use crate::export::part::Part;
use crate::vmdk::{SECTOR_BYTES, StreamLayout};

const OVF_NAME: &str = "disk.ovf";
const DISK_NAME: &str = "disk.vmdk";
/// Two empty blocks end an archive.
const END_BYTES: u64 = 2 * BLOCK_BYTES;
/// The largest size that eleven octal digits can say.
const OCTAL_MAX: u64 = (1 << 33) - 1;

/// See the module's documentation. Places are in bytes.
#[derive(Debug)]
pub(crate) struct Layout {
    /// All before the disk's first byte.
    start: Vec<u8>,
    disk: StreamLayout,
    /// Where the disk ends.
    end: u64,
}

impl Layout {
    /// `None` where the disk's file needs more sectors than 32 bits count.
    pub fn new(
        virtual_bytes: u64,
        used: impl Iterator<Item = Range<u64>>,
        identity: Identity,
    ) -> Option<Self> {
        let disk = StreamLayout::new(virtual_bytes, used, identity)?;
        let descriptor = descriptor(virtual_bytes.next_multiple_of(SECTOR_BYTES), disk.len());
        let mut start = header(OVF_NAME, descriptor.len() as u64);
        start.extend_from_slice(descriptor.as_bytes());
        start.resize(start.len().next_multiple_of(BLOCK_BYTES as usize), 0);
        start.extend(header(DISK_NAME, disk.len()));
        let end = start.len() as u64 + disk.len();
        Some(Self { start, disk, end })
    }
}

impl FileLayout for Layout {
    fn len(&self) -> u64 {
        // The disk's file is whole sectors, and so whole blocks.
        self.end + END_BYTES
    }

    fn locate(&self, guest: u64) -> Option<(u64, u64)> {
        let (at, follow) = self.disk.locate(guest)?;
        Some((self.start.len() as u64 + at, follow))
    }

    fn part(&self, at: u64, most: u64) -> Part {
        let start = self.start.len() as u64;
        if at < start {
            return Part::of(self.start.clone(), at, start, most);
        }
        if at < self.end {
            return self.disk.part(at - start, most.min(self.end - at));
        }
        Part::Zero((self.end + END_BYTES - at).min(most))
    }
}

/// The header of a regular file that anyone may read.
fn header(name: &str, size: u64) -> Vec<u8> {
    let mut block = vec![0; BLOCK_BYTES as usize];
    let mut put = |at: usize, bytes: &[u8]| block[at..at + bytes.len()].copy_from_slice(bytes);
    put(0, name.as_bytes());
    put(100, b"0000644\0");
    put(108, b"0000000\0");
    put(116, b"0000000\0");
    if size <= OCTAL_MAX {
        put(124, format!("{size:011o}\0").as_bytes());
    } else {
        put(124, &[0x80, 0, 0, 0]);
        put(128, &size.to_be_bytes());
    }
    put(136, b"00000000000\0");
    put(CHECKSUM_AT, b"        ");
    put(156, b"0");
    put(257, b"ustar\x0000");
    let sum: u64 = block.iter().map(|&byte| u64::from(byte)).sum();
    block[CHECKSUM_AT..CHECKSUM_AT + 8].copy_from_slice(format!("{sum:06o}\0 ").as_bytes());
    block
}

/// The schema wants the properties in the alphabet's order.
fn item(properties: &[(&str, &str)]) -> String {
    let lines = properties
        .iter()
        .map(|(name, value)| format!("        <rasd:{name}>{value}</rasd:{name}>\n"));
    format!("      <Item>\n{}      </Item>\n", lines.collect::<String>())
}

fn descriptor(capacity: u64, file_bytes: u64) -> String {
    let items: String = [
        vec![
            ("ElementName", "2 virtual CPUs"),
            ("InstanceID", "1"),
            ("ResourceType", "3"),
            ("VirtualQuantity", "2"),
        ],
        vec![
            ("AllocationUnits", "byte * 2^20"),
            ("ElementName", "2048 MB of memory"),
            ("InstanceID", "2"),
            ("ResourceType", "4"),
            ("VirtualQuantity", "2048"),
        ],
        vec![
            ("Address", "0"),
            ("ElementName", "SCSI controller"),
            ("InstanceID", "3"),
            ("ResourceSubType", "lsilogic"),
            ("ResourceType", "6"),
        ],
        vec![
            ("AddressOnParent", "0"),
            ("ElementName", "Disk"),
            ("HostResource", "ovf:/disk/disk1"),
            ("InstanceID", "4"),
            ("Parent", "3"),
            ("ResourceType", "17"),
        ],
    ]
    .iter()
    .map(|properties| item(properties))
    .collect();
    format!(
        "<?xml version=\"1.0\" encoding=\"UTF-8\"?>\n\
         <Envelope xmlns=\"http://schemas.dmtf.org/ovf/envelope/1\" \
         xmlns:ovf=\"http://schemas.dmtf.org/ovf/envelope/1\" \
         xmlns:rasd=\"http://schemas.dmtf.org/wbem/wscim/1/cim-schema/2/CIM_ResourceAllocationSettingData\" \
         xmlns:vssd=\"http://schemas.dmtf.org/wbem/wscim/1/cim-schema/2/CIM_VirtualSystemSettingData\">\n  \
         <References>\n    \
         <File ovf:href=\"{DISK_NAME}\" ovf:id=\"file1\" ovf:size=\"{file_bytes}\"/>\n  \
         </References>\n  \
         <DiskSection>\n    <Info>Virtual disks</Info>\n    \
         <Disk ovf:capacity=\"{capacity}\" ovf:capacityAllocationUnits=\"byte\" \
         ovf:diskId=\"disk1\" ovf:fileRef=\"file1\" \
         ovf:format=\"http://www.vmware.com/interfaces/specifications/vmdk.html#streamOptimized\"/>\n  \
         </DiskSection>\n  \
         <VirtualSystem ovf:id=\"disk\">\n    <Info>A virtual machine</Info>\n    \
         <Name>disk</Name>\n    \
         <OperatingSystemSection ovf:id=\"1\">\n      <Info>The operating system</Info>\n    \
         </OperatingSystemSection>\n    \
         <VirtualHardwareSection>\n      <Info>Virtual hardware</Info>\n      \
         <System>\n        <vssd:ElementName>Virtual hardware</vssd:ElementName>\n        \
         <vssd:InstanceID>0</vssd:InstanceID>\n        \
         <vssd:VirtualSystemType>vmx-08</vssd:VirtualSystemType>\n      </System>\n\
         {items}    </VirtualHardwareSection>\n  </VirtualSystem>\n</Envelope>\n"
    )
}
