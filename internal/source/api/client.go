package api

import (
	"context"
	"crypto/tls"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/url"
	"strconv"
	"strings"
	"time"
	"unicode"

	"edgepolicy.io/edgepolicyd/internal/manifest"
)

const (
	maxObject  = 4 << 20 // bytes of one object; etcd takes 1.5 MiB
	maxMessage = 300     // bytes of a server's message that are repeated
	maxWait    = 30 * time.Second
)

// errSilent: the server took the request, or the connection, and sent nothing for
// longer than it may.
var errSilent = errors.New("the server does not answer")

// statusError is an answer other than 200.
type statusError struct {
	code       int
	message    string
	retryAfter time.Duration // at most maxWait; zero if the server does not say
}

func (e *statusError) Error() string {
	text := strings.TrimSpace(fmt.Sprintf("%d %s", e.code, http.StatusText(e.code)))
	if e.message != "" {
		text += ": " + e.message
	}
	return text
}

// answerError is an answer 200 that is not what was asked for.
type answerError struct{ text string }

func (e *answerError) Error() string { return e.text }

// configError: there is no server to ask, by the configuration.
type configError struct{ text string }

func (e *configError) Error() string { return e.text }

// client asks one server, with one set of credentials.
type client struct {
	http     *http.Client
	base     *url.URL
	warnings []manifest.Diagnostic
}

// stream is the body of an answer. Reading fails with errSilent when nothing came
// for idle, and when more than maxObject came since the last call of next.
type stream struct {
	ctx    context.Context // of the request, which the stream is the rest of
	cancel context.CancelCauseFunc
	body   io.ReadCloser
	silent *time.Timer
	idle   time.Duration
	left   int
	http1  bool
}

// open asks for a path. The server must begin to answer within the time limit,
// and may then never be silent for longer than idle.
func (c *client) open(ctx context.Context, path string, query url.Values, limit, idle time.Duration) (*stream, error) {
	ctx, cancel := context.WithCancelCause(ctx)
	silent := time.AfterFunc(limit, func() { cancel(errSilent) })
	target := c.base.JoinPath(path)
	target.RawQuery = query.Encode()
	request, err := http.NewRequestWithContext(ctx, http.MethodGet, target.String(), nil)
	if err != nil {
		cancel(nil)
		return nil, &configError{"the server's URL can't be used"}
	}
	request.Header.Set("Accept", "application/json")
	answer, err := c.http.Do(request)
	if err != nil {
		silent.Stop()
		defer cancel(nil)
		var wrapped *url.Error
		if errors.As(err, &wrapped) {
			err = wrapped.Err // without the URL, which the report names in short
		}
		if context.Cause(ctx) == errSilent {
			err = errSilent
		}
		return nil, err
	}
	silent.Reset(idle)
	s := &stream{ctx: ctx, cancel: cancel, body: answer.Body, silent: silent, idle: idle, left: maxObject, http1: answer.ProtoMajor == 1}
	if answer.StatusCode != http.StatusOK {
		defer s.close()
		return nil, refusalOf(answer, s)
	}
	return s, nil
}

func (s *stream) Read(p []byte) (int, error) {
	if s.left <= 0 {
		return 0, &answerError{fmt.Sprintf("an object of more than %d MiB: that is more than is read", maxObject>>20)}
	}
	n, err := s.body.Read(p[:min(len(p), s.left)])
	s.left -= n
	if err != nil && context.Cause(s.ctx) == errSilent {
		return n, errSilent
	}
	if err == nil {
		s.silent.Reset(s.idle)
	}
	return n, err
}

// next says that an object was read whole.
func (s *stream) next() { s.left = maxObject }

func (s *stream) close() {
	s.silent.Stop()
	s.cancel(nil)
	s.body.Close()
}

// refusalOf reads what a server says of an answer other than 200: a Status, as
// whatever type it is declared, or a text.
func refusalOf(answer *http.Response, body io.Reader) error {
	e := &statusError{code: answer.StatusCode}
	if seconds, err := strconv.Atoi(answer.Header.Get("Retry-After")); err == nil && seconds > 0 {
		e.retryAfter = min(time.Duration(min(seconds, 3600))*time.Second, maxWait)
	}
	text, _ := io.ReadAll(io.LimitReader(body, 16<<10))
	var status struct {
		Message string `json:"message"`
	}
	if json.Unmarshal(text, &status) == nil {
		e.message = plain(status.Message)
	} else if first, _, _ := strings.Cut(strings.TrimSpace(string(text)), "\n"); !strings.HasPrefix(first, "<") {
		e.message = plain(first)
	}
	return e
}

// plain makes one printable line of what a server said.
func plain(text string) string {
	text = strings.Map(func(r rune) rune {
		if !unicode.IsPrint(r) {
			return ' '
		}
		return r
	}, text)
	if len(text) > maxMessage {
		text = strings.ToValidUTF8(text[:maxMessage], "") + "..."
	}
	return strings.TrimSpace(text)
}

// class tells errors apart that are worth another report.
func class(err error) string {
	var status *statusError
	var answer *answerError
	var config *configError
	switch {
	case errors.As(err, &status):
		return strconv.Itoa(status.code)
	case errors.As(err, &answer), errors.As(err, &config):
		return err.Error()
	case untrusted(err):
		return "tls"
	}
	return "network"
}

// untrusted says whether TLS does not come about: the server's certificate is not
// one that we trust, or it does not take ours, or it speaks no TLS.
func untrusted(err error) bool {
	var verification *tls.CertificateVerificationError
	var record tls.RecordHeaderError
	var op *net.OpError
	return errors.As(err, &verification) || errors.As(err, &record) ||
		errors.As(err, &op) && op.Op == "remote error" ||
		err != nil && strings.Contains(err.Error(), "server gave HTTP response to HTTPS client")
}

// lasting says whether an error is one that does not pass by itself, and whether
// that is sure at once: an API server that starts answers 403 and 404 for some
// seconds.
func lasting(err error) (is, atOnce bool) {
	var status *statusError
	var answer *answerError
	var config *configError
	switch {
	case errors.As(err, &config), untrusted(err):
		return true, true
	case errors.As(err, &answer):
		return true, false
	case errors.As(err, &status):
		switch status.code {
		case http.StatusRequestTimeout, http.StatusGone, http.StatusTooManyRequests:
			return false, false
		}
		return status.code < 500, false
	}
	return false, false
}

// remedy says what to do about an error that does not pass by itself.
func remedy(err error, resource string) string {
	var status *statusError
	if untrusted(err) {
		return "see that the kubeconfig has the server's CA, the right server name and a certificate of ours that is valid, and that the clock is right"
	}
	if !errors.As(err, &status) {
		return ""
	}
	switch status.code {
	case http.StatusUnauthorized:
		return "the server does not know our credentials: give a kubeconfig with valid ones"
	case http.StatusForbidden:
		return "allow our user to list and watch " + resource + " (a ClusterRole and a ClusterRoleBinding)"
	case http.StatusNotFound:
		return "the server does not serve " + resource + ": see that its address is that of a Kubernetes API"
	}
	return ""
}

// retryAfter is how long a server asks us to wait; zero if it does not.
func retryAfter(err error) time.Duration {
	var status *statusError
	if errors.As(err, &status) {
		return status.retryAfter
	}
	return 0
}
