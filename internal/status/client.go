package status

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/url"
	"os"
	"strconv"
	"syscall"
	"time"

	"edgepolicy.io/edgepolicyd/internal/explain"
	"edgepolicy.io/edgepolicyd/internal/policy"
)

// ErrNotRunning says that nobody serves the socket.
var ErrNotRunning = errors.New("edgepolicyd is not running")

// maxAnswer bounds what the client reads, in bytes: more than a matrix of all
// pods of a large gateway.
const maxAnswer = 256 << 20

// Client asks a running daemon.
type Client struct {
	socket string
	http   http.Client
}

// Dial gives a client for the socket. It connects with each question, so that
// it is here that nothing can fail.
func Dial(socket string) *Client {
	var d net.Dialer
	return &Client{socket: socket, http: http.Client{Transport: &http.Transport{
		DisableKeepAlives: true,
		DialContext: func(ctx context.Context, _, _ string) (net.Conn, error) {
			return d.DialContext(ctx, "unix", socket)
		},
	}}}
}

// Status asks how the daemon is.
func (c *Client) Status(ctx context.Context) (Status, error) {
	var s Status
	err := c.call(ctx, answerTime, http.MethodGet, "/v1/status", nil, &s)
	return s, err
}

// Reload has the daemon read its sources now, and returns when the kernel has
// the result or the time is over.
func (c *Client) Reload(ctx context.Context, timeout time.Duration) (ReloadResult, error) {
	var r ReloadResult
	// The daemon keeps the time, as it can say what was late; the client waits
	// a little longer for that answer.
	err := c.call(ctx, timeout+readTime, http.MethodPost, "/v1/reload?timeout="+timeout.String(), nil, &r)
	return r, err
}

// Flush has the daemon take its tables away and stop enforcing.
func (c *Client) Flush(ctx context.Context) error {
	return c.call(ctx, answerTime, http.MethodPost, "/v1/flush", nil, &struct{}{})
}

// Matrix asks who reaches whom.
func (c *Client) Matrix(ctx context.Context, r policy.MatrixRequest) ([]policy.Cell, error) {
	var cells []policy.Cell
	err := c.call(ctx, answerTime, http.MethodPost, "/v1/matrix", r, &cells)
	return cells, err
}

// Known asks for what all sources together know.
func (c *Client) Known(ctx context.Context) (Known, error) {
	var k Known
	err := c.call(ctx, answerTime, http.MethodGet, "/v1/known", nil, &k)
	return k, err
}

// Table asks for the table as nft text: the whole (""), or the part of the pod
// "namespace/name".
func (c *Client) Table(ctx context.Context, pod string) (string, error) {
	var text string
	err := c.call(ctx, answerTime, http.MethodGet, "/v1/table?"+url.Values{"pod": {pod}}.Encode(), nil, &text)
	return text, err
}

// Explain asks why a flow passes or not.
func (c *Client) Explain(ctx context.Context, q explain.Question) (explain.Explanation, error) {
	var e explain.Explanation
	err := c.call(ctx, answerTime, http.MethodPost, "/v1/explain", q, &e)
	return e, err
}

// Denied asks for the flows that were denied lately and whose Seq is higher than
// after.
func (c *Client) Denied(ctx context.Context, after uint64) ([]DeniedFlow, error) {
	var list []DeniedFlow
	err := c.call(ctx, answerTime, http.MethodGet, "/v1/denied?after="+strconv.FormatUint(after, 10), nil, &list)
	return list, err
}

// call asks one question.
func (c *Client) call(ctx context.Context, timeout time.Duration, method, path string, question, result any) error {
	ctx, cancel := context.WithTimeout(ctx, timeout)
	defer cancel()
	var body io.Reader
	if question != nil {
		data, err := json.Marshal(question)
		if err != nil {
			return fmt.Errorf("ask edgepolicyd: %w", err)
		}
		body = bytes.NewReader(data)
	}
	request, err := http.NewRequestWithContext(ctx, method, "http://edgepolicyd"+path, body)
	if err != nil {
		return fmt.Errorf("ask edgepolicyd: %w", err)
	}
	response, err := c.http.Do(request)
	if err != nil {
		return c.explain(err)
	}
	defer response.Body.Close()
	return read(response, result)
}

// read takes an answer apart.
func read(response *http.Response, result any) error {
	data, err := io.ReadAll(io.LimitReader(response.Body, maxAnswer+1))
	if err != nil {
		return fmt.Errorf("read edgepolicyd's answer: %w", err)
	}
	if len(data) > maxAnswer {
		return fmt.Errorf("read edgepolicyd's answer: more than %d bytes", maxAnswer)
	}
	if response.StatusCode != http.StatusOK {
		var p problem
		if json.Unmarshal(data, &p) != nil || p.Error == "" {
			p.Error = fmt.Sprintf("%s (is it of the same version?)", response.Status)
		}
		return fmt.Errorf("edgepolicyd answers: %s", p.Error)
	}
	if err := json.Unmarshal(data, result); err != nil {
		return fmt.Errorf("read edgepolicyd's answer: %w", err)
	}
	return nil
}

// explain says what a failed connection means to the person who asked, and what
// to do.
func (c *Client) explain(err error) error {
	switch {
	case errors.Is(err, os.ErrNotExist):
		return fmt.Errorf("%w: there is no socket %s; start it with `systemctl start edgepolicyd`, or name its configuration with --config", ErrNotRunning, c.socket)
	case errors.Is(err, syscall.ECONNREFUSED):
		return fmt.Errorf("%w: it left its socket %s behind when it ended; see `journalctl -u edgepolicyd`, and start it with `systemctl start edgepolicyd`", ErrNotRunning, c.socket)
	case errors.Is(err, os.ErrPermission):
		return fmt.Errorf("no access to %s: ask as root (sudo)", c.socket)
	case errors.Is(err, context.DeadlineExceeded):
		return fmt.Errorf("edgepolicyd does not answer on %s: %w", c.socket, context.DeadlineExceeded)
	case errors.Is(err, context.Canceled):
		return context.Canceled
	}
	return fmt.Errorf("ask edgepolicyd on %s: %w", c.socket, err)
}
