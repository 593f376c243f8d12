package audit

import (
	"bytes"
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"log/slog"
	"net"
	"os"
	"strconv"
	"strings"
	"time"

	"golang.org/x/sys/unix"
)

// This file writes journald's native protocol (systemd.io/JOURNAL_NATIVE_PROTOCOL).
// go-systemd's journal.Send is not used: its socket is not connected, so that the
// kernel can't say when a full journald has room again, and it asks without pause
// until then; nor can it be told to give up.

// maxFieldName is how long journald lets a field's name be, in bytes.
const maxFieldName = 64

// patience is how long the writer waits for journald to take a message; once it did
// not, only patienceLost, until it does again.
const (
	patience     = time.Second
	patienceLost = time.Millisecond
)

// journalHandler encodes records for journald.
type journalHandler struct {
	level  slog.Leveler
	put    func(line)
	fields []byte // of WithAttrs, encoded
	text   string // the same, for MESSAGE
	prefix string // of WithGroup, for keys: "a.b."
}

func (h *journalHandler) Enabled(_ context.Context, l slog.Level) bool { return l >= h.level.Level() }

func (h *journalHandler) WithGroup(name string) slog.Handler {
	c := *h
	c.prefix += name + "."
	return &c
}

func (h *journalHandler) WithAttrs(attrs []slog.Attr) slog.Handler {
	e := entry{fields: bytes.Clone(h.fields)}
	e.text.WriteString(h.text)
	for _, a := range attrs {
		e.add(h.prefix, a)
	}
	c := *h
	c.fields, c.text = e.fields, e.text.String()
	return &c
}

func (h *journalHandler) Handle(_ context.Context, r slog.Record) error {
	e := entry{fields: bytes.Clone(h.fields)}
	e.text.WriteString(h.text)
	r.Attrs(func(a slog.Attr) bool {
		e.add(h.prefix, a)
		return true
	})
	message := escape(r.Message, "")
	if e.event != nil {
		e.fields = appendField(e.fields, "MESSAGE_ID", e.event.ID)
	} else {
		message += e.text.String()
	}
	e.fields = appendField(e.fields, "MESSAGE", message)
	e.fields = appendField(e.fields, "PRIORITY", strconv.Itoa(priority(r.Level)))
	e.fields = appendField(e.fields, "SYSLOG_IDENTIFIER", "edgepolicyd")
	h.put(line{data: e.fields, record: slog.NewRecord(r.Time, r.Level, message, 0)})
	return nil
}

// priority is the level as syslog numbers it.
func priority(l slog.Level) int {
	switch {
	case l < slog.LevelInfo:
		return 7
	case l < LevelNotice:
		return 6
	case l < slog.LevelWarn:
		return 5
	case l < slog.LevelError:
		return 4
	}
	return 3
}

// entry is a message while it is put together.
type entry struct {
	fields []byte
	text   strings.Builder // " key=value" for each attribute
	event  *Event
}

func (e *entry) add(prefix string, a slog.Attr) {
	v := a.Value.Resolve()
	if v.Kind() == slog.KindGroup {
		if a.Key != "" {
			prefix += a.Key + "."
		}
		for _, a := range v.Group() {
			e.add(prefix, a)
		}
		return
	}
	if a.Equal(slog.Attr{}) {
		return
	}
	text := v.String()
	if v.Kind() == slog.KindTime {
		text = v.Time().Format(time.RFC3339Nano)
	} else if event, ok := v.Any().(*Event); ok {
		e.event, text = event, event.Name
	}
	key := prefix + a.Key
	if list, ok := v.Any().(List); ok {
		text = strings.Join(list, ",")
		for _, one := range list {
			e.fields = appendField(e.fields, fieldName(key), escape(one, "\n\t"))
		}
		e.text.WriteString(" " + quoted(key) + "=" + quoted(text))
		return
	}
	e.fields = appendField(e.fields, fieldName(key), escape(text, "\n\t"))
	e.text.WriteString(" " + quoted(key) + "=" + quoted(text))
}

// fieldName is the journal's field for a key: EDGEPOLICY_ and the key in capitals,
// with _ for whatever a name can't have.
func fieldName(key string) string {
	name := []byte("EDGEPOLICY_" + strings.ToUpper(key))
	for i, c := range name {
		if (c < 'A' || c > 'Z') && (c < '0' || c > '9') {
			name[i] = '_'
		}
	}
	return string(name[:min(len(name), maxFieldName)])
}

// appendField encodes a field: in a line, or with its length where the value has
// more than one.
func appendField(b []byte, name, value string) []byte {
	b = append(b, name...)
	if strings.Contains(value, "\n") {
		b = append(b, '\n')
		b = binary.LittleEndian.AppendUint64(b, uint64(len(value)))
	} else {
		b = append(b, '=')
	}
	b = append(b, value...)
	return append(b, '\n')
}

// journal is the way to journald. Only the queue's writer uses it.
type journal struct {
	path   string
	stderr slog.Handler // takes what journald does not
	conn   *net.UnixConn
	lost   bool // journald did not take the last message
}

// write sends a message, or says it on stderr.
func (j *journal) write(l line) {
	err := j.send(l.data)
	if err == nil {
		j.lost = false
		return
	}
	if !j.lost {
		j.lost = true
		j.stderr.Handle(context.Background(), slog.NewRecord(l.record.Time, slog.LevelWarn, fmt.Sprintf("the journal does not take messages, they go to standard error until it does: %v", err), 0))
	}
	j.stderr.Handle(context.Background(), l.record)
}

// send sends an entry; over a new connection if the one that is there has lost its
// other end.
func (j *journal) send(data []byte) error {
	err := j.try(data)
	if err != nil && !errors.Is(err, os.ErrDeadlineExceeded) && j.conn != nil {
		j.conn.Close()
		j.conn = nil
		err = j.try(data)
	}
	return err
}

func (j *journal) try(data []byte) error {
	if j.conn == nil {
		conn, err := net.DialUnix("unixgram", nil, &net.UnixAddr{Name: j.path, Net: "unixgram"})
		if err != nil {
			return err
		}
		j.conn = conn
	}
	wait := patience
	if j.lost {
		wait = patienceLost
	}
	if err := j.conn.SetWriteDeadline(time.Now().Add(wait)); err != nil {
		return err
	}
	_, err := j.conn.Write(data)
	if errors.Is(err, unix.EMSGSIZE) || errors.Is(err, unix.ENOBUFS) {
		return j.sendFile(data)
	}
	return err
}

// sendFile sends an entry that is too large for a datagram, as a sealed file in
// memory.
func (j *journal) sendFile(data []byte) error {
	fd, err := unix.MemfdCreate("journal-entry", unix.MFD_ALLOW_SEALING|unix.MFD_CLOEXEC)
	if err != nil {
		return fmt.Errorf("memfd_create: %w", err)
	}
	f := os.NewFile(uintptr(fd), "journal-entry")
	defer f.Close()
	if _, err := f.Write(data); err != nil {
		return err
	}
	if _, err := unix.FcntlInt(uintptr(fd), unix.F_ADD_SEALS, unix.F_SEAL_SHRINK|unix.F_SEAL_GROW|unix.F_SEAL_WRITE|unix.F_SEAL_SEAL); err != nil {
		return fmt.Errorf("seal the entry: %w", err)
	}
	conn, err := j.conn.SyscallConn()
	if err != nil {
		return err
	}
	// net.UnixConn sends no files over a connected datagram socket.
	var sendErr error
	err = conn.Write(func(socket uintptr) bool {
		sendErr = unix.Sendmsg(int(socket), nil, unix.UnixRights(fd), nil, 0)
		return sendErr != unix.EAGAIN
	})
	return errors.Join(err, sendErr)
}
