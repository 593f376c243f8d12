package gateway

import (
	"bufio"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"strings"

	"golang.org/x/sys/unix"
)

// loadModule loads a kernel module and what it depends on, as modprobe does.
func loadModule(name string) error {
	var u unix.Utsname
	if err := unix.Uname(&u); err != nil {
		return fmt.Errorf("uname: %w", err)
	}
	return loadModuleFrom(filepath.Join("/lib/modules", unix.ByteSliceToString(u.Release[:])), name)
}

func loadModuleFrom(dir, name string) error {
	f, err := os.Open(filepath.Join(dir, "modules.dep"))
	if err != nil {
		return fmt.Errorf("load module %s: %w", name, err)
	}
	defer f.Close()
	files, err := moduleFiles(f, name)
	if err != nil {
		return fmt.Errorf("load module %s: read %s: %w", name, f.Name(), err)
	}
	if len(files) == 0 {
		return fmt.Errorf("load module %s: %s does not know it", name, f.Name())
	}
	for _, file := range files {
		if err := insertModule(filepath.Join(dir, file)); err != nil {
			return fmt.Errorf("load module %s: insert %s: %w", name, file, err)
		}
	}
	return nil
}

// moduleFiles finds a module in modules.dep and gives the files to insert, in
// order: a line names a module's file and then what it needs, the deepest
// last. None: the module is not there.
func moduleFiles(dep io.Reader, name string) ([]string, error) {
	lines := bufio.NewScanner(dep)
	lines.Buffer(nil, 1<<20)
	for lines.Scan() {
		file, needs, ok := strings.Cut(lines.Text(), ":")
		if !ok || moduleName(file) != name {
			continue
		}
		all := append([]string{file}, strings.Fields(needs)...)
		for i, j := 0, len(all)-1; i < j; i, j = i+1, j-1 {
			all[i], all[j] = all[j], all[i]
		}
		return all, nil
	}
	return nil, lines.Err()
}

// moduleName is the name of a module in a file such as br-netfilter.ko.xz.
func moduleName(file string) string {
	base, _, _ := strings.Cut(filepath.Base(file), ".")
	return strings.ReplaceAll(base, "-", "_")
}

// insertModule inserts one file; one that is there already is fine. The kernel
// unpacks .gz, .xz and .zst itself, from 5.17 on and where it was built so.
func insertModule(path string) error {
	f, err := os.Open(path)
	if err != nil {
		return err
	}
	defer f.Close()
	flags := 0
	if !strings.HasSuffix(path, ".ko") {
		flags = unix.MODULE_INIT_COMPRESSED_FILE
	}
	if err := unix.FinitModule(int(f.Fd()), "", flags); err != nil && err != unix.EEXIST {
		return err
	}
	return nil
}
