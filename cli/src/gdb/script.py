# Written by enclos for gdb, again with every build of the image.
#
# Loads the symbols of the enclave's program and of its runtime wherever the process puts the enclave: the host library
# has a table of its enclaves, and calls an empty function whenever that changes.
import re

import gdb

IMAGE = {{image}}
# An entry of the table: start of ELRANGE (8 bytes, 0: free), MRENCLAVE (32 bytes).
TABLE, CHANGED, ENTRIES, ENTRY_SIZE = "ENCLOS_HOST_ENCLAVES", "enclos_host_enclaves_changed", 64, 40


class Enclaves:
    """Keeps gdb's symbol files in step with the enclaves of the process."""

    def __init__(self):
        self.loaded = set()

    def bases(self):
        """Where enclaves of this image are."""
        try:
            found = gdb.execute("info address " + TABLE, to_string=True)
        except gdb.error:
            return set()
        address = re.search(r"0x[0-9a-f]+", found)
        if address is None:
            return set()
        memory = gdb.selected_inferior().read_memory(int(address.group(), 16), ENTRIES * ENTRY_SIZE).tobytes()
        entries = [memory[at:at + ENTRY_SIZE] for at in range(0, len(memory), ENTRY_SIZE)]
        wanted = bytes.fromhex(IMAGE["mrenclave"])
        return {int.from_bytes(e[:8], "little") for e in entries if e[8:] == wanted} - {0}

    def update(self):
        now = self.bases()
        for base in self.loaded - now:
            for part in IMAGE["parts"]:
                try:
                    gdb.execute("remove-symbol-file -a %#x" % (base + part["within"]), to_string=True)
                except gdb.error:
                    pass
        for base in now - self.loaded:
            for part in IMAGE["parts"]:
                file, at = part["file"], base + part["offset"]
                gdb.execute('add-symbol-file "%s" -o %#x' % (file, at), to_string=True)
            print("enclave %s at %#x" % (IMAGE["name"], base))
        self.loaded = now

    def forget(self, _event=None):
        self.loaded = set()


class OnChange(gdb.Breakpoint):
    def stop(self):
        ENCLAVES.update()
        return False


class ShowEnclaves(gdb.Command):
    """Load the symbols of the enclaves that the process has now."""

    def __init__(self):
        super().__init__("enclos-symbols", gdb.COMMAND_FILES)

    def invoke(self, _argument, _from_tty):
        ENCLAVES.update()


ENCLAVES = Enclaves()
ShowEnclaves()
# How the emulated CPU learns of Linux calls and of instructions that are not executed inside, and of time limits.
gdb.execute("handle {{signals}} nostop noprint pass", to_string=True)
gdb.execute("set breakpoint pending on")
for folder, name in IMAGE["sources"]:
    gdb.execute('set substitute-path "%s" "%s"' % (name, folder))
OnChange(CHANGED, internal=True)
gdb.events.exited.connect(ENCLAVES.forget)
if gdb.selected_inferior().pid:
    ENCLAVES.update()
