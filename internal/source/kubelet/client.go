package kubelet

import (
	"bytes"
	"context"
	"crypto/tls"
	"crypto/x509"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/http/httptrace"
	"net/url"
	"os"
	"strings"
	"time"
)

const (
	answerWait = 2 * time.Second // for a whole answer; one with 60 pods was recorded to take 17 ms
	dialWait   = time.Second
	idleWait   = 80 * time.Second // a kubelet itself closes a connection that was idle for 90 s
	maxFile    = 1 << 20          // bytes of a certificate, key or token file
)

// client asks the kubelet, by the certificates and the token that are in the
// files now. It is not for use by two at once.
type client struct {
	cfg   *Config
	files [3][]byte // CA, certificate and key that rt was made with
	rt    http.RoundTripper
	close func()
	wait  time.Duration // answerWait
	stale error         // why the files as they are now can't be used; rt is of older ones
	fixed bool          // rt stays, whatever the files are
}

// answer is what one question brought.
type answer struct {
	body  []byte
	fresh bool // over a new connection
	err   error
	away  bool // err: nobody answered, or only to say that he can't now
}

// pods asks for the list of pods. buf is written over.
func (c *client) pods(ctx context.Context, buf *bytes.Buffer) answer {
	if err := c.prepare(); err != nil {
		return answer{err: err}
	}
	token, err := c.token()
	if err != nil {
		return answer{err: err}
	}
	a := c.ask(ctx, buf, token)
	if a.err != nil {
		c.close() // a connection that is of no use is not used again
		if token != "" && strings.Contains(a.err.Error(), token) {
			a.err = errors.New(strings.ReplaceAll(a.err.Error(), token, "(the token)"))
		}
	}
	return a
}

func (c *client) ask(ctx context.Context, buf *bytes.Buffer, token string) (a answer) {
	ctx, cancel := context.WithTimeout(ctx, c.wait)
	defer cancel()
	ctx = httptrace.WithClientTrace(ctx, &httptrace.ClientTrace{GotConn: func(i httptrace.GotConnInfo) { a.fresh = !i.Reused }})
	req, err := http.NewRequestWithContext(ctx, http.MethodGet, c.cfg.URL.JoinPath("pods").String(), nil)
	if err != nil {
		return answer{err: err}
	}
	req.Header.Set("Accept", "application/json")
	req.Header.Set("User-Agent", "edgepolicyd")
	if token != "" {
		req.Header.Set("Authorization", "Bearer "+token)
	}
	// Not http.Client, which would follow redirects with the token.
	resp, err := c.rt.RoundTrip(req)
	if err != nil {
		a.err, a.away = c.unanswered(err)
		return a
	}
	defer resp.Body.Close()
	if resp.StatusCode != http.StatusOK {
		text, _ := io.ReadAll(io.LimitReader(resp.Body, 300))
		a.err, a.away = c.refused(resp.StatusCode, strings.TrimSpace(string(text)))
		return a
	}
	buf.Reset()
	if _, err := buf.ReadFrom(io.LimitReader(resp.Body, maxBody+1)); err != nil {
		a.err, a.away = c.unanswered(err)
		return a
	}
	if buf.Len() > maxBody {
		a.err = c.failure(fmt.Sprintf("its list has more than %d MiB, too much for one gateway", maxBody>>20))
		return a
	}
	a.body = buf.Bytes()
	return a
}

// prepare makes the transport anew if any of its files has changed. While a new
// set of files is not sound, as between the writing of a certificate and its
// key, the connection by the old set goes on.
func (c *client) prepare() error {
	if c.fixed {
		return nil
	}
	var files [3][]byte
	var err error
	for i, path := range []string{c.cfg.CA, c.cfg.Certificate, c.cfg.Key} {
		if path != "" && err == nil {
			files[i], err = readFile(path)
		}
	}
	same := func() bool {
		for i := range files {
			if !bytes.Equal(files[i], c.files[i]) {
				return false
			}
		}
		return true
	}
	if err == nil && c.rt != nil && same() {
		c.stale = nil
		return nil
	}
	var config *tls.Config
	if err == nil {
		config, err = c.tls(files)
	}
	if err != nil {
		if c.rt == nil {
			return err
		}
		c.stale = err
		return nil
	}
	c.stale = nil
	if c.rt != nil {
		c.close()
	}
	t := &http.Transport{
		DialContext:     (&net.Dialer{Timeout: dialWait}).DialContext,
		TLSClientConfig: config, TLSHandshakeTimeout: c.wait, ForceAttemptHTTP2: true,
		MaxIdleConns: 1, IdleConnTimeout: idleWait, DisableCompression: true,
		MaxResponseHeaderBytes: 64 << 10,
		// Proxy is not set: a kubelet is on this gateway.
	}
	c.rt, c.close, c.files = t, t.CloseIdleConnections, files
	return nil
}

func (c *client) tls(files [3][]byte) (*tls.Config, error) {
	config := &tls.Config{ServerName: c.cfg.ServerName, MinVersion: tls.VersionTLS12}
	if c.cfg.CA != "" {
		config.RootCAs = x509.NewCertPool()
		if !config.RootCAs.AppendCertsFromPEM(files[0]) {
			return nil, fmt.Errorf("ca %s holds no certificate in PEM", c.cfg.CA)
		}
	}
	if c.cfg.Certificate != "" {
		pair, err := tls.X509KeyPair(files[1], files[2])
		if err != nil {
			return nil, fmt.Errorf("certificate %s with key %s can't be used: %w", c.cfg.Certificate, c.cfg.Key, err)
		}
		// Shown whatever CAs the server names: it then says 401, which tells more
		// than a certificate that was not shown.
		config.GetClientCertificate = func(*tls.CertificateRequestInfo) (*tls.Certificate, error) { return &pair, nil }
	}
	return config, nil
}

// token reads the token as it is now: those of service accounts are replaced
// every hour.
func (c *client) token() (string, error) {
	if c.cfg.TokenFile == "" {
		return "", nil
	}
	data, err := readFile(c.cfg.TokenFile)
	if err != nil {
		return "", err
	}
	token := strings.TrimSpace(string(data))
	switch {
	case token == "":
		return "", fmt.Errorf("tokenFile %s is empty", c.cfg.TokenFile)
	case strings.ContainsFunc(token, func(r rune) bool { return r <= ' ' || r >= 0x7f }):
		return "", fmt.Errorf("tokenFile %s must hold one token, without spaces and other lines", c.cfg.TokenFile)
	}
	return token, nil
}

// readFile reads a small file.
func readFile(path string) ([]byte, error) {
	f, err := os.Open(path)
	if err != nil {
		return nil, err
	}
	defer f.Close()
	data, err := io.ReadAll(io.LimitReader(f, maxFile+1))
	if err == nil && len(data) > maxFile {
		err = fmt.Errorf("%s has more than %d bytes, and that is the most", path, maxFile)
	}
	return data, err
}

// failure is an error of this kubelet.
func (c *client) failure(text string) error {
	return fmt.Errorf("kubelet at %s: %s", c.cfg.URL, text)
}

// unanswered says what a failed exchange means, and whether the kubelet is just
// not there.
func (c *client) unanswered(err error) (_ error, away bool) {
	var (
		unknown   x509.UnknownAuthorityError
		name      x509.HostnameError
		invalid   x509.CertificateInvalidError
		plain     tls.RecordHeaderError
		operation *net.OpError
		timeout   net.Error
	)
	tell := func(format string, args ...any) error { return c.failure(fmt.Sprintf(format, args...)) }
	if u := (*url.Error)(nil); errors.As(err, &u) {
		err = u.Err
	}
	switch {
	case errors.As(err, &unknown):
		if c.cfg.CA == "" {
			return tell("its certificate is of no CA that this system knows: set ca to the file of the CA that signed it"), false
		}
		return tell("its certificate is not of the CA in %s: set ca to that of the CA that signed it", c.cfg.CA), false
	case errors.As(err, &name):
		return tell("its certificate is for another name (%v): set serverName to one that it is for, such as the node's", name), false
	case errors.As(err, &invalid) && invalid.Reason == x509.Expired:
		return tell("its certificate is not valid now, at %s: renew it, or set the clock right", time.Now().UTC().Format(time.DateOnly)), false
	case errors.As(err, &invalid):
		return tell("its certificate can't be used: %v", invalid), false
	case errors.As(err, &plain):
		return tell("it does not speak TLS at this port: use http:// if this is the read-only port (10255)"), false
	case strings.Contains(err.Error(), "remote error: tls:"):
		return tell("it refuses the TLS connection (%v): look at certificate and key", inner(err)), false
	case errors.Is(err, context.DeadlineExceeded), errors.As(err, &timeout) && timeout.Timeout():
		return tell("no answer within %v: is it running, and is this its address?", c.wait), true
	case errors.As(err, &operation):
		// Without the ports of the connection, which are others each time.
		return tell("out of reach: %s: %v: is it running, and is this its address?", operation.Op, inner(operation.Err)), true
	}
	return tell("out of reach: %v", err), true
}

// inner is the last error of a chain: the one that says what happened.
func inner(err error) error {
	for next := errors.Unwrap(err); next != nil; next = errors.Unwrap(err) {
		err = next
	}
	return err
}

// refused says what an answer other than a list means, and whether it means that
// the kubelet can't now.
func (c *client) refused(status int, text string) (_ error, away bool) {
	const later = "; if its API server is out of reach, this may pass by itself"
	hint := ""
	switch {
	case status == http.StatusBadRequest && strings.Contains(text, "HTTP request to an HTTPS server"):
		hint = "use https:// in its url"
	case status == http.StatusUnauthorized:
		hint = "it does not accept who we say we are: look at certificate and key, or tokenFile" + later
	case status == http.StatusForbidden:
		hint = "we may not ask it for pods: our user needs the right to get nodes/pods (nodes/proxy before Kubernetes 1.33)" + later
	case status == http.StatusNotFound, status == http.StatusMethodNotAllowed:
		hint = "is this the url of a kubelet, such as https://127.0.0.1:10250?"
	case status >= 300 && status < 400:
		hint = "it points elsewhere, and that is not followed: is this the url of a kubelet?"
	case status >= 500:
		away = true
	}
	told := fmt.Sprintf("it answers %d %s", status, http.StatusText(status))
	if text != "" && text != http.StatusText(status) {
		told += fmt.Sprintf(" (%.200q)", text)
	}
	if hint != "" {
		told += ": " + hint
	}
	return c.failure(told), away
}
