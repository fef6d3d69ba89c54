//! qemu-img's `-o`: how a target is laid out. Each format is written in one way, or two, so that the
//! same disk gives the same bytes; what is said of that way is taken, and anything else refused, since
//! whoever says it counts on it.
//!
//! Non-goal: to write a format in yet another way.

use shoal_formats::Target;

use super::usage;
use crate::arguments::{Compression, Convert, Size};
use crate::error::Error;

/// What a target is written as, when all options were looked at.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Chosen {
    pub target: Target,
    pub compress: bool,
    pub compression: Compression,
}

/// # Errors
/// Where something is wanted that is not written.
pub(super) fn chosen(arguments: &Convert) -> Result<Chosen, Error> {
    let mut chosen = Chosen {
        target: arguments.to,
        compress: arguments.compress,
        compression: arguments.compression,
    };
    if arguments.sparse.is_some_and(|Size(bytes)| bytes == 0) {
        let text = "-S 0 wants zeros to take room in the target, which they never do here";
        return Err(usage(text.to_owned()));
    }
    let all = arguments.options.iter().flat_map(|options| options.split(','));
    for option in all.filter(|option| !option.is_empty()) {
        let (name, value) = option.split_once('=').unwrap_or((option, "on"));
        if !chosen.takes(name, value) {
            let text = format!(
                "{} is not written with -o {name}={value}; {}",
                chosen.target,
                chosen.written()
            );
            return Err(usage(text));
        }
    }
    Ok(chosen)
}

impl Chosen {
    /// Whether a target of that option is what is written.
    fn takes(&mut self, name: &str, value: &str) -> bool {
        let is_off = matches!(value, "off" | "no" | "false");
        match (self.target, name) {
            (Target::Raw | Target::Qcow2, "preallocation") => value == "off",
            (Target::Qcow2, "compat") => matches!(value, "1.1" | "v3"),
            (Target::Qcow2, "cluster_size") => value.parse() == Ok(Size(64 * 1024)),
            (Target::Qcow2, "refcount_bits") => value == "16",
            (Target::Qcow2, "lazy_refcounts" | "extended_l2" | "encryption") => is_off,
            (Target::Qcow2, "compression_type") => match value {
                "zlib" => self.compressed_by(Compression::Zlib),
                "zstd" => self.compressed_by(Compression::Zstd),
                _ => false,
            },
            (Target::Vmdk | Target::VmdkStream, "subformat") => match value {
                "streamOptimized" => {
                    // As anybody else writes it.
                    self.compress = true;
                    self.becomes(Target::VmdkStream)
                }
                "monolithicSparse" => self.target == Target::Vmdk,
                _ => false,
            },
            (Target::Vmdk | Target::VmdkStream, "adapter_type") => value == "lsilogic",
            (Target::Vmdk | Target::VmdkStream, "hwversion") => value == "8",
            (Target::Vmdk | Target::VmdkStream, "compat6" | "zeroed_grain") => is_off,
            (Target::Vhd | Target::VhdFixed, "subformat") => match value {
                "dynamic" => self.target == Target::Vhd,
                "fixed" => self.becomes(Target::VhdFixed),
                _ => false,
            },
            // The length is the disk's own in any case.
            (Target::Vhd | Target::VhdFixed, "force_size") => true,
            (Target::Vhdx, "subformat") => value == "dynamic",
            (Target::Vhdx, "block_size") => value == "0",
            _ => false,
        }
    }

    fn compressed_by(&mut self, compression: Compression) -> bool {
        self.compression = compression;
        true
    }

    fn becomes(&mut self, target: Target) -> bool {
        self.target = target;
        true
    }

    /// What there is to choose.
    fn written(&self) -> &'static str {
        match self.target {
            Target::Qcow2 => {
                "it has compat=1.1, cluster_size=64k and refcount_bits=16, and takes \
                 compression_type=zlib or zstd"
            }
            Target::Vmdk | Target::VmdkStream => {
                "it takes subformat=monolithicSparse or streamOptimized"
            }
            Target::Vhd | Target::VhdFixed => "it takes subformat=dynamic or fixed",
            Target::Vhdx => "it has subformat=dynamic",
            Target::Raw | Target::Ova => "it takes no options",
        }
    }
}

#[cfg(test)]
mod tests {
    use clap::Parser;

    use super::*;
    use crate::arguments::{Arguments, Command, DiskCommand};

    fn of(words: &str) -> Result<Chosen, String> {
        let line = format!("shoal disk convert {words} in out");
        let arguments = Arguments::try_parse_from(line.split(' ')).unwrap();
        let Command::Disk(DiskCommand::Convert(convert)) = arguments.command else {
            panic!("{line}")
        };
        chosen(&convert).map_err(|error| error.to_string())
    }

    #[test]
    fn what_is_written_anyway_is_taken_and_anything_else_refused() {
        for (words, target, compress, compression) in [
            ("-O qcow2", Target::Qcow2, false, Compression::Zlib),
            ("-p -O qcow2 -S 4k -m 8 -W", Target::Qcow2, false, Compression::Zlib),
            ("-t none -T writeback -U -q", Target::Raw, false, Compression::Zlib),
            (
                "-O qcow2 -o cluster_size=64k,compat=1.1 -o lazy_refcounts=off",
                Target::Qcow2,
                false,
                Compression::Zlib,
            ),
            ("-O qcow2 -o cluster_size=65536", Target::Qcow2, false, Compression::Zlib),
            ("-c -O qcow2 -o compression_type=zstd", Target::Qcow2, true, Compression::Zstd),
            (
                "-O vmdk -o adapter_type=lsilogic,subformat=streamOptimized",
                Target::VmdkStream,
                true,
                Compression::Zlib,
            ),
            ("-O vpc -o subformat=fixed,force_size", Target::VhdFixed, false, Compression::Zlib),
            ("-O vpc -o subformat=dynamic", Target::Vhd, false, Compression::Zlib),
        ] {
            assert_eq!(of(words), Ok(Chosen { target, compress, compression }), "{words}");
        }
        for words in [
            "-O qcow2 -o cluster_size=2M",
            "-O qcow2 -o compat=0.10",
            "-O qcow2 -o backing_file=x",
            "-O qcow2 -o preallocation=full",
            "-O vmdk -o subformat=monolithicFlat",
            "-O vhdx -o subformat=fixed",
            "-O raw -o size=1G",
            "-O raw -S 0",
        ] {
            assert!(of(words).is_err(), "{words}");
        }
        let refused = of("-O qcow2 -o cluster_size=2M").unwrap_err();
        assert!(refused.contains("cluster_size=2M") && refused.contains("64k"), "{refused}");
    }
}
