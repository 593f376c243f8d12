package audit

import (
	"bytes"
	"encoding/binary"
	"fmt"
	"io"
	"log/slog"
	"net"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"testing"
	"time"

	"golang.org/x/sys/unix"
)

// limit bounds what is waited for in tests: generous, as the machine may be busy.
const limit = 30 * time.Second

// journald is what listens in journald's place.
type journald struct {
	t    *testing.T
	path string
	conn *net.UnixConn
}

func listen(t *testing.T, path string) *journald {
	t.Helper()
	conn, err := net.ListenUnixgram("unixgram", &net.UnixAddr{Name: path, Net: "unixgram"})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { conn.Close() })
	return &journald{t, path, conn}
}

func newJournald(t *testing.T) *journald {
	t.Helper()
	return listen(t, filepath.Join(t.TempDir(), "socket"))
}

// datagram waits for an entry as it was sent, and says whether it came as a file.
func (j *journald) datagram() (data []byte, file bool) {
	j.t.Helper()
	j.conn.SetReadDeadline(time.Now().Add(limit))
	data, oob := make([]byte, 1<<20), make([]byte, unix.CmsgSpace(4))
	n, oobn, _, _, err := j.conn.ReadMsgUnix(data, oob)
	if err != nil {
		j.t.Fatalf("journald has received nothing: %v", err)
	}
	if oobn == 0 {
		return data[:n], false
	}
	messages, err := unix.ParseSocketControlMessage(oob[:oobn])
	if err != nil || n != 0 || len(messages) != 1 {
		j.t.Fatalf("%d bytes with %d control messages: %v", n, len(messages), err)
	}
	fds, err := unix.ParseUnixRights(&messages[0])
	if err != nil || len(fds) != 1 {
		j.t.Fatalf("%d files: %v", len(fds), err)
	}
	f := os.NewFile(uintptr(fds[0]), "entry")
	defer f.Close()
	// journald refuses what could change while it reads.
	seals, err := unix.FcntlInt(f.Fd(), unix.F_GET_SEALS, 0)
	if want := unix.F_SEAL_SHRINK | unix.F_SEAL_GROW | unix.F_SEAL_WRITE | unix.F_SEAL_SEAL; err != nil || seals != want {
		j.t.Errorf("the file's seals are %#x, want %#x: %v", seals, want, err)
	}
	if data, err = io.ReadAll(io.NewSectionReader(f, 0, 1<<30)); err != nil {
		j.t.Fatal(err)
	}
	return data, true
}

// entry waits for an entry, and takes it apart.
func (j *journald) entry() map[string]string {
	j.t.Helper()
	data, _ := j.datagram()
	fields, err := parse(data)
	if err != nil {
		j.t.Fatal(err)
	}
	return fields
}

// parse reads the native protocol as its specification describes it; it is stricter
// than journald, which skips what it does not understand.
func parse(data []byte) (map[string]string, error) {
	fields := map[string]string{}
	for len(data) > 0 {
		first, rest, found := bytes.Cut(data, []byte("\n"))
		if !found {
			return nil, fmt.Errorf("no end of line in %q", data)
		}
		name, value, simple := bytes.Cut(first, []byte("="))
		if !simple {
			if len(rest) < 8 {
				return nil, fmt.Errorf("no length of %q", name)
			}
			n := binary.LittleEndian.Uint64(rest)
			if rest = rest[8:]; n >= uint64(len(rest)) || rest[n] != '\n' {
				return nil, fmt.Errorf("%q has %d bytes, of %d, or no end", name, n, len(rest))
			}
			value, rest = rest[:n], rest[n+1:]
		}
		if !validName(string(name)) {
			return nil, fmt.Errorf("journald takes no field %q", name)
		}
		if _, twice := fields[string(name)]; twice {
			return nil, fmt.Errorf("field %s is there twice", name)
		}
		fields[string(name)] = string(value)
		data = rest
	}
	return fields, nil
}

// validName is journal_field_valid of systemd, for those that a client may send.
func validName(name string) bool {
	return name != "" && len(name) <= 64 && strings.Trim(name, "ABCDEFGHIJKLMNOPQRSTUVWXYZ_0123456789") == "" &&
		name[0] != '_' && (name[0] < '0' || name[0] > '9')
}

// buffer is a standard error that can be read while it is written.
type buffer struct {
	mu sync.Mutex
	b  bytes.Buffer
}

func (b *buffer) Write(p []byte) (int, error) {
	b.mu.Lock()
	defer b.mu.Unlock()
	return b.b.Write(p)
}

func (b *buffer) String() string {
	b.mu.Lock()
	defer b.mu.Unlock()
	return b.b.String()
}

// open makes a log that is closed with the test.
func open(t *testing.T, format string, level slog.Level, stderr io.Writer, socket string) (*slog.Logger, *Handler) {
	t.Helper()
	h, err := NewHandler(format, level, stderr, socket)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { h.Close(limit) })
	return slog.New(h), h
}

// within waits for a condition.
func within(t *testing.T, what string, condition func() bool) {
	t.Helper()
	for end := time.Now().Add(limit); !condition(); time.Sleep(5 * time.Millisecond) {
		if time.Now().After(end) {
			t.Fatalf("not within %s: %s", limit, what)
		}
	}
}
