package status

import (
	"cmp"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"log/slog"
	"net"
	"net/http"
	"os"
	"path/filepath"
	"strconv"
	"syscall"
	"time"

	"golang.org/x/sys/unix"

	"edgepolicy.io/edgepolicyd/internal/explain"
	"edgepolicy.io/edgepolicyd/internal/policy"
)

const (
	maxRequest = 1 << 20          // bytes of a request's body
	readTime   = 5 * time.Second  // to read a request
	answerTime = 60 * time.Second // to work and to write the answer, beside a reload's own time
)

// MaxReload is the longest that a reload may be asked to take.
const MaxReload = 10 * time.Minute

// Listener is the claimed socket.
type Listener struct {
	lock *os.File
	net.Listener
}

// Listen claims the socket, so that a second daemon is refused before it touches
// anything. It makes the socket's directory if need be. The socket of a daemon
// that has died is replaced; that of a living one is an error.
func Listen(socket string) (*Listener, error) {
	lock, err := claim(socket)
	if err != nil {
		return nil, err
	}
	l, err := net.Listen("unix", socket)
	if err != nil {
		lock.Close()
		return nil, fmt.Errorf("listen on %s: %w", socket, err)
	}
	if err := os.Chmod(socket, 0o600); err != nil {
		l.Close()
		lock.Close()
		return nil, fmt.Errorf("listen on %s: %w", socket, err)
	}
	return &Listener{lock: lock, Listener: l}, nil
}

// Serve answers until ctx ends, gives the socket up, and then returns nil.
func (l *Listener) Serve(ctx context.Context, d Daemon, log *slog.Logger) error {
	defer l.lock.Close()
	server := &http.Server{
		Handler:           authorized(routes(d), log),
		ConnContext:       withPeer,
		ReadHeaderTimeout: readTime,
		ReadTimeout:       readTime,
		WriteTimeout:      answerTime,
		IdleTimeout:       answerTime,
		MaxHeaderBytes:    16 << 10,
		ErrorLog:          slog.NewLogLogger(log.Handler(), slog.LevelDebug),
		BaseContext:       func(net.Listener) context.Context { return ctx },
	}
	stop := context.AfterFunc(ctx, func() {
		// What is being answered may be finished; ctx has told it to hurry.
		last, cancel := context.WithTimeout(context.WithoutCancel(ctx), time.Second)
		defer cancel()
		if server.Shutdown(last) != nil {
			server.Close()
		}
	})
	defer stop()
	if err := server.Serve(l.Listener); !errors.Is(err, http.ErrServerClosed) {
		return fmt.Errorf("serve %s: %w", l.Addr(), err)
	}
	return nil
}

// claim makes sure that nobody else serves the socket, and that its name is
// free. The file it returns holds the claim, which dies with the process, so
// that two daemons that start at once can't both take a dead one's place.
func claim(socket string) (*os.File, error) {
	if err := os.MkdirAll(filepath.Dir(socket), 0o755); err != nil {
		return nil, fmt.Errorf("make the socket's directory: %w", err)
	}
	name := socket + ".lock"
	lock, err := os.OpenFile(name, os.O_RDWR|os.O_CREATE|unix.O_NOFOLLOW, 0o600)
	if err != nil {
		return nil, fmt.Errorf("lock the socket: %w", err)
	}
	running := fmt.Errorf("another edgepolicyd is running: it serves %s", socket)
	if err := unix.Flock(int(lock.Fd()), unix.LOCK_EX|unix.LOCK_NB); err != nil {
		lock.Close()
		if errors.Is(err, unix.EWOULDBLOCK) {
			return nil, running
		}
		return nil, fmt.Errorf("lock %s: %w", name, err)
	}
	if err := removeStale(socket, running); err != nil {
		lock.Close()
		return nil, err
	}
	return lock, nil
}

// removeStale removes the socket if nobody listens on it.
func removeStale(socket string, running error) error {
	info, err := os.Lstat(socket)
	if errors.Is(err, os.ErrNotExist) {
		return nil
	}
	if err != nil {
		return fmt.Errorf("look at the socket: %w", err)
	}
	if info.Mode().Type() != os.ModeSocket {
		return fmt.Errorf("%s is in the way: it is no socket", socket)
	}
	c, err := net.DialTimeout("unix", socket, readTime)
	if err == nil {
		c.Close()
		return running
	}
	if !errors.Is(err, syscall.ECONNREFUSED) {
		return fmt.Errorf("is %s alive: %w", socket, err)
	}
	if err := os.Remove(socket); err != nil {
		return fmt.Errorf("remove the socket of a dead daemon: %w", err)
	}
	return nil
}

// peer is who is at the other end of a connection.
type peer struct {
	uid uint32
	err error
}

type peerKey struct{}

// withPeer asks the kernel who connected (SO_PEERCRED, see unix(7)): the user
// at the time of connect, which the peer can't forge.
func withPeer(ctx context.Context, c net.Conn) context.Context {
	var p peer
	raw, err := c.(*net.UnixConn).SyscallConn()
	if err == nil {
		err = raw.Control(func(fd uintptr) {
			var cred *unix.Ucred
			if cred, p.err = unix.GetsockoptUcred(int(fd), unix.SOL_SOCKET, unix.SO_PEERCRED); p.err == nil {
				p.uid = cred.Uid
			}
		})
	}
	p.err = errors.Join(err, p.err)
	return context.WithValue(ctx, peerKey{}, p)
}

// uidOf gives the user who asks; authorized has made sure that one is known.
func uidOf(r *http.Request) uint32 {
	p, _ := r.Context().Value(peerKey{}).(peer)
	return p.uid
}

// authorized lets root and the daemon's own user in.
func authorized(next http.Handler, log *slog.Logger) http.Handler {
	return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		p, ok := r.Context().Value(peerKey{}).(peer)
		if !ok || p.err != nil || p.uid != 0 && int(p.uid) != os.Geteuid() {
			log.Warn("status socket: caller refused", "uid", p.uid, "path", r.URL.Path, "err", p.err)
			fail(w, http.StatusForbidden, errors.New("only root and the daemon's own user may ask it"))
			return
		}
		r.Body = http.MaxBytesReader(w, r.Body, maxRequest)
		next.ServeHTTP(w, r)
	})
}

func routes(d Daemon) http.Handler {
	mux := http.NewServeMux()
	mux.HandleFunc("GET /v1/status", func(w http.ResponseWriter, _ *http.Request) { answer(w, d.Status()) })
	mux.HandleFunc("POST /v1/reload", func(w http.ResponseWriter, r *http.Request) { reload(w, r, d) })
	mux.HandleFunc("POST /v1/flush", func(w http.ResponseWriter, r *http.Request) {
		if err := d.Flush(r.Context(), uidOf(r)); err != nil {
			fail(w, http.StatusInternalServerError, err)
			return
		}
		answer(w, struct{}{})
	})
	mux.HandleFunc("POST /v1/matrix", func(w http.ResponseWriter, r *http.Request) { matrix(w, r, d) })
	mux.HandleFunc("GET /v1/known", func(w http.ResponseWriter, _ *http.Request) { answer(w, d.Known()) })
	mux.HandleFunc("GET /v1/table", func(w http.ResponseWriter, r *http.Request) {
		text, err := d.Table(r.URL.Query().Get("pod"))
		if err != nil {
			fail(w, http.StatusNotFound, err)
			return
		}
		answer(w, text)
	})
	mux.HandleFunc("POST /v1/explain", func(w http.ResponseWriter, r *http.Request) {
		var q explain.Question
		if !question(w, r, &q) {
			return
		}
		e, err := d.Explain(q)
		if err != nil {
			fail(w, http.StatusNotFound, err)
			return
		}
		answer(w, e)
	})
	mux.HandleFunc("GET /v1/denied", func(w http.ResponseWriter, r *http.Request) {
		after, err := strconv.ParseUint(cmp.Or(r.URL.Query().Get("after"), "0"), 10, 64)
		if err != nil {
			fail(w, http.StatusBadRequest, fmt.Errorf("after %q: want a number", r.URL.Query().Get("after")))
			return
		}
		answer(w, d.Denied(after))
	})
	mux.HandleFunc("GET /metrics", func(w http.ResponseWriter, _ *http.Request) { metrics(w, d) })
	return mux
}

// reload bounds the work by the time that the caller has.
func reload(w http.ResponseWriter, r *http.Request, d Daemon) {
	timeout, err := time.ParseDuration(r.URL.Query().Get("timeout"))
	if err != nil || timeout <= 0 || timeout > MaxReload {
		fail(w, http.StatusBadRequest, fmt.Errorf("timeout %q: want a duration up to %s, such as 5s", r.URL.Query().Get("timeout"), MaxReload))
		return
	}
	ctx, cancel := context.WithTimeout(r.Context(), timeout)
	defer cancel()
	if err := http.NewResponseController(w).SetWriteDeadline(time.Now().Add(timeout + answerTime)); err != nil {
		fail(w, http.StatusInternalServerError, err)
		return
	}
	result, err := d.Reload(ctx, fmt.Sprintf("uid %d", uidOf(r)))
	switch {
	case err != nil && errors.Is(ctx.Err(), context.DeadlineExceeded):
		fail(w, http.StatusGatewayTimeout, fmt.Errorf("not done after %s, the daemon goes on: %w", timeout, err))
	case err != nil:
		fail(w, http.StatusInternalServerError, err)
	default:
		answer(w, result)
	}
}

func matrix(w http.ResponseWriter, r *http.Request, d Daemon) {
	var request policy.MatrixRequest
	if !question(w, r, &request) {
		return
	}
	s, o, err := d.Snapshot()
	if err != nil {
		fail(w, http.StatusConflict, err)
		return
	}
	answer(w, policy.Matrix(s, &o, request))
}

// question reads a request's body, strictly; false if it could not, and the caller
// was told so.
func question(w http.ResponseWriter, r *http.Request, to any) bool {
	body := json.NewDecoder(r.Body)
	body.DisallowUnknownFields()
	if err := body.Decode(to); err != nil {
		fail(w, http.StatusBadRequest, fmt.Errorf("request: %w", err))
		return false
	}
	return true
}

// problem is the body of every answer that is not a success.
type problem struct {
	Error string `json:"error"`
}

func fail(w http.ResponseWriter, code int, err error) {
	w.Header().Set("Content-Type", "application/json")
	w.WriteHeader(code)
	json.NewEncoder(w).Encode(problem{err.Error()}) // the caller may be gone
}

func answer(w http.ResponseWriter, v any) {
	w.Header().Set("Content-Type", "application/json")
	json.NewEncoder(w).Encode(v) // as above
}
