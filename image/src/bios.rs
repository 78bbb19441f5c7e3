//! A boot sector for machines that start the ISO through a legacy BIOS: it prints that UEFI is needed and stops. The same code serves
//! as El Torito boot image (CD) and as the code of the master boot record (USB stick).

/// What the screen says.
pub const MESSAGE: &str =
    "Strake needs UEFI. This machine started it in legacy BIOS mode.\r\nSwitch the firmware to UEFI boot and try again.\r\n";

const SECTOR: usize = 512;

/// 16-bit code that does not depend on where it is loaded; the message follows it.
const CODE: [u8; 34] = [
    0xfa, // cli
    0x31, 0xc0, // xor ax, ax
    0x8e, 0xd0, // mov ss, ax
    0xbc, 0x00, 0x7c, // mov sp, 0x7c00
    0xfb, // sti
    0xfc, // cld
    0x0e, // push cs
    0x1f, // pop ds
    0xe8, 0x00, 0x00, // call the next instruction, to learn where we are
    0x5e, // pop si
    0x83, 0xc6, 0x15, // add si, distance from here to the message
    0xac, // print: lodsb
    0x84, 0xc0, // test al, al
    0x74, 0x09, // jz stop
    0xb4, 0x0e, // mov ah, 0x0e (teletype output)
    0xbb, 0x07, 0x00, // mov bx, 7 (page 0, grey)
    0xcd, 0x10, // int 0x10
    0xeb, 0xf2, // jmp print
    0xf4, // stop: hlt
];

/// The jump back to `hlt`, which ends the code.
const HALT_AGAIN: [u8; 2] = [0xeb, 0xfd];

/// The sector.
pub fn sector() -> [u8; SECTOR] {
    let mut sector = [0; SECTOR];
    let parts = [&CODE[..], &HALT_AGAIN, MESSAGE.as_bytes()];
    for (place, byte) in sector.iter_mut().zip(parts.into_iter().flatten()) {
        *place = *byte;
    }
    sector[SECTOR - 2..].copy_from_slice(&[0x55, 0xaa]);
    sector
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_code_finds_the_message_and_leaves_room_for_the_partition_table() {
        let after_call = 15;
        assert_eq!(CODE[after_call], 0x5e, "`pop si` follows the call");
        let message = CODE.len() + HALT_AGAIN.len();
        assert_eq!(after_call + usize::from(CODE[18]), message, "the distance added to si");
        let print = 19;
        assert_eq!(CODE[print], 0xac);
        let jump_zero = CODE.iter().position(|byte| *byte == 0x74).unwrap();
        assert_eq!(jump_zero + 2 + usize::from(CODE[jump_zero + 1]), CODE.len() - 1, "jz goes to hlt");
        let jump_back = CODE.iter().position(|byte| *byte == 0xeb).unwrap();
        assert_eq!((jump_back + 2).checked_add_signed(isize::from(CODE[jump_back + 1] as i8)), Some(print));
        assert!(message + MESSAGE.len() < 440, "a master boot record has 440 bytes for code");
        assert_eq!(sector()[message..message + MESSAGE.len()], *MESSAGE.as_bytes());
        assert_eq!(sector()[message + MESSAGE.len()], 0, "the message ends with a zero byte");
    }
}
