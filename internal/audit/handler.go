package audit

import (
	"bytes"
	"context"
	"fmt"
	"io"
	"io/fs"
	"log/slog"
	"os"
	"time"

	"golang.org/x/sys/unix"
)

// JournalSocket is where journald takes messages in its native protocol.
const JournalSocket = "/run/systemd/journal/socket"

// Handler is the log. It is one slog.Handler with all that slog.Logger.With derives
// from it; its methods can be called at any time from anywhere.
type Handler struct {
	slog.Handler
	queue *queue
}

// NewHandler makes the log and starts its writer, which Close ends. The format is
// journal (journald's native protocol over the socket), text or json (a line
// each on stderr), or auto: journal where the socket is there and stderr is no
// terminal, else text. A message that journald does not take goes to stderr. The
// error says that there is no such format.
func NewHandler(format string, level slog.Leveler, stderr io.Writer, socket string) (*Handler, error) {
	if format == "auto" {
		format = "text"
		if isSocket(socket) && !isTerminal(stderr) {
			format = "journal"
		}
	}
	var encoder func(put func(line)) slog.Handler
	write := func(l line) { stderr.Write(l.data) } // nobody is left to be told of an error
	o := &slog.HandlerOptions{Level: level, ReplaceAttr: levelName}
	switch format {
	case "text":
		encoder = func(put func(line)) slog.Handler { return slog.NewTextHandler(lineWriter(put), o) }
	case "json":
		encoder = func(put func(line)) slog.Handler { return slog.NewJSONHandler(lineWriter(put), o) }
	case "journal":
		encoder = func(put func(line)) slog.Handler { return &journalHandler{level: level, put: put} }
		j := &journal{path: socket, stderr: slog.NewTextHandler(stderr, &slog.HandlerOptions{Level: slog.LevelDebug, ReplaceAttr: levelName})}
		write = j.write
	default:
		return nil, fmt.Errorf("log format %q: must be auto, journal, text or json", format)
	}
	direct := slog.New(encoder(write))
	q := newQueue(write, func(n int) {
		MessagesLost.Log(direct, fmt.Sprintf("%d messages were lost: the log did not take them as fast as they came", n), slog.Int(KeyCount, n))
	})
	go q.run()
	return &Handler{Handler: encoder(q.put), queue: q}, nil
}

// WithAttrs is slog.Handler's.
func (h *Handler) WithAttrs(attrs []slog.Attr) slog.Handler {
	return &Handler{h.Handler.WithAttrs(attrs), h.queue}
}

// WithGroup is slog.Handler's.
func (h *Handler) WithGroup(name string) slog.Handler {
	return &Handler{h.Handler.WithGroup(name), h.queue}
}

// Lost is how many messages a log has lost so far; 0 of a log that is no Handler.
func Lost(log *slog.Logger) uint64 {
	if h, ok := log.Handler().(*Handler); ok {
		return h.queue.total.Load()
	}
	return 0
}

// Close writes what waits and ends the log; what is logged later is lost. It returns
// after the timeout at the latest; the error says how many messages were not
// written.
func (h *Handler) Close(timeout time.Duration) error { return h.queue.close(timeout) }

// settle waits until there is plenty of room, or the context ends.
func (h *Handler) settle(ctx context.Context) { h.queue.settle(ctx) }

// lineWriter makes lines of what slog's handlers write: one Write for each record.
type lineWriter func(line)

func (w lineWriter) Write(p []byte) (int, error) {
	w(line{data: bytes.Clone(p)})
	return len(p), nil
}

// levelName gives NOTICE its name.
func levelName(groups []string, a slog.Attr) slog.Attr {
	if level, ok := a.Value.Any().(slog.Level); ok && len(groups) == 0 && a.Key == slog.LevelKey && level == LevelNotice {
		a.Value = slog.StringValue("NOTICE")
	}
	return a
}

func isSocket(path string) bool {
	info, err := os.Stat(path)
	return err == nil && info.Mode().Type() == fs.ModeSocket
}

func isTerminal(w io.Writer) bool {
	f, ok := w.(*os.File)
	if !ok {
		return false
	}
	conn, err := f.SyscallConn()
	if err != nil {
		return false
	}
	terminal := false
	err = conn.Control(func(fd uintptr) {
		_, err := unix.IoctlGetTermios(int(fd), unix.TCGETS)
		terminal = err == nil
	})
	return err == nil && terminal
}
