// Package page looks at the report as a browser shows it.
package page

import (
	"bytes"
	"context"
	"encoding/json"
	"fmt"
	"html"
	"image"
	"image/png"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"syscall"
	"testing"
	"time"

	"edgepolicy.io/edgepolicyd/internal/report"
)

// chromium runs a headless browser, alone in a network namespace without a way out,
// and gives what it prints.
func chromium(t *testing.T, args ...string) []byte {
	t.Helper()
	path, err := exec.LookPath("chromium")
	if err != nil {
		t.Fatal("there is no chromium to show the page: make install-deps, or apt-get install chromium")
	}
	if os.Geteuid() != 0 {
		t.Fatal("this test needs root: it makes a network namespace for the browser")
	}
	ctx, cancel := context.WithTimeout(t.Context(), 3*time.Minute)
	defer cancel()
	cmd := exec.CommandContext(ctx, path, append([]string{
		"--headless", "--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run", "--disable-background-networking",
		"--disable-component-update", "--disable-sync", "--disable-dev-shm-usage", "--hide-scrollbars", "--user-data-dir=" + t.TempDir(),
	}, args...)...)
	cmd.SysProcAttr = &syscall.SysProcAttr{Cloneflags: syscall.CLONE_NEWNET, Setpgid: true}
	cmd.Cancel = func() error { return syscall.Kill(-cmd.Process.Pid, syscall.SIGKILL) } // with its helpers
	cmd.WaitDelay = 10 * time.Second
	var out, errs bytes.Buffer
	cmd.Stdout, cmd.Stderr = &out, &errs
	if err := cmd.Run(); err != nil {
		t.Fatalf("chromium: %v\n%s", err, errs.Bytes())
	}
	return out.Bytes()
}

func write(t *testing.T, r report.Report) []byte {
	t.Helper()
	var b bytes.Buffer
	if err := report.Write(&b, r); err != nil {
		t.Fatal(err)
	}
	return b.Bytes()
}

// seen is what look.js finds in one report.
type seen struct {
	Name             string
	Width, Overflow  int      // of the body, in CSS pixels; by how much it is wider than the window
	Outside          []string // elements that stick out, those within boxes that scroll aside
	Contrast         float64  // the lowest of all texts (WCAG 2.2)
	Faint            []string // texts below 4.5
	Scripts, Loads   int
	External, Dead   []string // references to elsewhere, and to nothing
	Headings         []int
	Unscoped         int  // header cells that do not say of what
	Sticks           bool // a scrolled matrix keeps its first column
	Dark             bool
	Title, Smuggled  string
	Cells, Articles  int
	SmallestFontSize float64
}

const look = `
const rgb = s => (s.match(/[\d.]+/g) || []).map(Number)
const light = c => { const l = c.slice(0, 3).map(v => (v /= 255) <= .04045 ? v / 12.92 : ((v + .055) / 1.055) ** 2.4); return .2126 * l[0] + .7152 * l[1] + .0722 * l[2] }
function ratio(a, b) { const [x, y] = [light(a), light(b)].sort((p, q) => q - p); return (x + .05) / (y + .05) }
function examine(f) {
	const d = f.contentDocument, w = f.contentWindow, root = d.documentElement, width = root.clientWidth
	const r = {Name: f.name, Width: width, Overflow: Math.max(root.scrollWidth, d.body.scrollWidth) - width, Outside: [], Contrast: 99, Faint: [], SmallestFontSize: 99,
		Scripts: d.scripts.length, Loads: w.performance.getEntriesByType('resource').length, External: [], Dead: [], Headings: [], Sticks: true,
		Title: d.title, Smuggled: String(w.smuggled), Cells: d.querySelectorAll('td').length, Articles: d.querySelectorAll('article').length,
		Unscoped: d.querySelectorAll('th:not([scope])').length, Dark: light(rgb(w.getComputedStyle(d.body).backgroundColor)) < .2}
	for (const e of d.body.querySelectorAll('*')) {
		const box = e.getBoundingClientRect()
		if (box.right > width + 1 && !e.closest('.scroll')) r.Outside.push(e.tagName + ' ' + e.textContent.slice(0, 40))
		for (const a of e.attributes) if (/^(src|href|action|data|srcset|poster|on.*)$/.test(a.name)) {
			if (!a.value.startsWith('#')) r.External.push(a.name + '=' + a.value)
			else if (!d.getElementById(a.value.slice(1))) r.Dead.push(a.value)
		}
		if (/^H[1-6]$/.test(e.tagName)) r.Headings.push(Number(e.tagName[1]))
		if (![...e.childNodes].some(n => n.nodeType == 3 && n.data.trim())) continue
		const style = w.getComputedStyle(e)
		let under = e, back
		for (; under && !(back && (back.length < 4 || back[3] > 0)); under = under.parentElement) back = rgb(w.getComputedStyle(under).backgroundColor)
		const c = ratio(rgb(style.color), back)
		r.Contrast = Math.min(r.Contrast, c)
		r.SmallestFontSize = Math.min(r.SmallestFontSize, parseFloat(style.fontSize))
		if (c < 4.5) r.Faint.push(c.toFixed(2) + ' ' + e.className + ' ' + e.textContent.slice(0, 40))
	}
	for (const s of d.querySelectorAll('.scroll')) {
		const head = s.querySelector('.matrix tbody th')
		if (!head || s.scrollWidth <= s.clientWidth) continue
		s.scrollLeft = 1e6
		if (s.scrollLeft == 0 || Math.abs(head.getBoundingClientRect().left - s.getBoundingClientRect().left) > 2) r.Sticks = false
	}
	r.Outside = r.Outside.slice(0, 5); r.Faint = r.Faint.slice(0, 5)
	return r
}
onload = () => { document.getElementById('result').textContent = JSON.stringify([...document.querySelectorAll('iframe')].map(examine)) }
`

var result = regexp.MustCompile(`(?s)<pre id="result">(.*?)</pre>`)

// TestLayout shows the reports at the width of a desk and of a phone, light and dark.
func TestLayout(t *testing.T) {
	reports := map[string]report.Report{"factory": factory(t), "crowd": crowd(t, 110), "idle": idle(t)}
	page := filepath.Join(t.TempDir(), "look.html")
	var b bytes.Buffer
	b.WriteString("<!DOCTYPE html><meta charset=utf-8><pre id=result></pre>\n")
	for name, r := range reports {
		for _, width := range []int{1280, 390} {
			fmt.Fprintf(&b, "<iframe name=\"%s\" style=\"width:%dpx;height:2000px;border:0\" srcdoc=\"%s\"></iframe>\n", name, width, html.EscapeString(string(write(t, r))))
		}
	}
	b.WriteString("<script>" + look + "</script>\n")
	if err := os.WriteFile(page, b.Bytes(), 0o600); err != nil {
		t.Fatal(err)
	}
	for scheme, dark := range map[string]bool{"light": false, "dark": true} {
		t.Run(scheme, func(t *testing.T) {
			setting := "--blink-settings=preferredColorScheme=1"
			if dark {
				setting = "--blink-settings=preferredColorScheme=0"
			}
			found := result.FindSubmatch(chromium(t, setting, "--virtual-time-budget=20000", "--dump-dom", "file://"+page))
			var all []seen
			if found == nil || json.Unmarshal([]byte(html.UnescapeString(string(found[1]))), &all) != nil || len(all) != 6 {
				t.Fatalf("no result: %q", found)
			}
			for _, s := range all {
				s.check(t, dark, reports[s.Name])
			}
		})
	}
}

func (s seen) check(t *testing.T, dark bool, r report.Report) {
	t.Helper()
	at := fmt.Sprintf("%s at %d px", s.Name, s.Width)
	t.Logf("%s: %d cells, contrast %.2f, font %.1f px", at, s.Cells, s.Contrast, s.SmallestFontSize)
	if s.Overflow > 0 || len(s.Outside) > 0 {
		t.Errorf("%s: %d px wider than the window: %q", at, s.Overflow, s.Outside)
	}
	if s.Dark != dark {
		t.Errorf("%s: dark is %v, want %v", at, s.Dark, dark)
	}
	if s.Contrast < 4.5 {
		t.Errorf("%s: faint texts: %q", at, s.Faint)
	}
	if s.SmallestFontSize < 12 {
		t.Errorf("%s: a text of %.1f px", at, s.SmallestFontSize)
	}
	if s.Scripts+s.Loads+len(s.External)+len(s.Dead) > 0 || s.Smuggled != "undefined" {
		t.Errorf("%s: %d scripts, %d loads, references to elsewhere %q and to nothing %q, smuggled in: %s", at, s.Scripts, s.Loads, s.External, s.Dead, s.Smuggled)
	}
	if s.Unscoped > 0 || !s.Sticks {
		t.Errorf("%s: %d header cells without scope; the matrix keeps its first column: %v", at, s.Unscoped, s.Sticks)
	}
	for i, level := range s.Headings {
		if i == 0 && level != 1 || i > 0 && (level == 1 || level > s.Headings[i-1]+1) {
			t.Errorf("%s: levels of headings: %v", at, s.Headings)
			break
		}
	}
	if s.Articles != len(r.Snapshot.Policies) || s.Cells == 0 && len(r.Matrix) > 0 {
		t.Errorf("%s: %d policies, %d cells", at, s.Articles, s.Cells)
	}
}

// TestScreenshot: there is something to see, and the margins are free.
func TestScreenshot(t *testing.T) {
	page := filepath.Join(t.TempDir(), "report.html")
	if err := os.WriteFile(page, write(t, factory(t)), 0o600); err != nil {
		t.Fatal(err)
	}
	for _, width := range []int{1280, 390} {
		t.Run(fmt.Sprint(width), func(t *testing.T) {
			shot := filepath.Join(t.TempDir(), "shot.png")
			chromium(t, "--blink-settings=preferredColorScheme=1", fmt.Sprintf("--window-size=%d,3000", width), "--screenshot="+shot, "file://"+page)
			f, err := os.Open(shot)
			if err != nil {
				t.Fatal(err)
			}
			defer f.Close()
			img, err := png.Decode(f)
			if err != nil {
				t.Fatal(err)
			}
			judge(t, img, width)
		})
	}
}

// judge looks at the pixels: those of the background are white.
func judge(t *testing.T, img image.Image, width int) {
	t.Helper()
	if img.Bounds().Dx() != width || img.Bounds().Dy() < 2000 {
		t.Fatalf("a picture of %v, want %d wide", img.Bounds(), width)
	}
	colours := map[[3]uint32]bool{}
	drawn, rows, margin := 0, 0, 0
	for y := range img.Bounds().Dy() {
		row := 0
		for x := range width {
			r, g, b, _ := img.At(x, y).RGBA()
			if r == 0xffff && g == 0xffff && b == 0xffff {
				continue
			}
			colours[[3]uint32{r, g, b}] = true
			row++
			if x < 12 || x >= width-12 {
				margin++
			}
		}
		drawn += row
		if row > 0 {
			rows++
		}
	}
	share := float64(drawn) / float64(width*img.Bounds().Dy())
	t.Logf("%d colours, %.0f %% drawn, in %d rows", len(colours), 100*share, rows)
	if len(colours) < 100 || share < 0.05 || share > 0.9 || rows < 1000 {
		t.Errorf("%d colours, %.0f %% drawn, in %d of %d rows: that is no report", len(colours), 100*share, rows, img.Bounds().Dy())
	}
	if margin > 0 {
		t.Errorf("%d pixels are drawn in the margins: something sticks out", margin)
	}
}
