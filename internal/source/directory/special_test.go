package directory

import "golang.org/x/sys/unix"

type special struct {
	mode uint32
	dev  int
}

var (
	fifo = special{unix.S_IFIFO | 0o644, 0}
	null = special{unix.S_IFCHR | 0o644, int(unix.Mkdev(1, 3))}
)

func mknod(path string, s special) error { return unix.Mknod(path, s.mode, s.dev) }
