package e2e

import (
	"net/netip"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"edgepolicy.io/edgepolicyd/internal/lab"
)

// The four scenarios that the project began with, on a gateway as in the field:
// pods of 172.21.2.0/24, the gateway in the local network 192.168.20.0/24.

func scenario(t *testing.T, config string, files []string, test func(w *world)) {
	for _, kind := range []lab.Kind{lab.Bridge, lab.Routed} {
		t.Run(kind.String(), func(t *testing.T) {
			w := newWorld(t, lab.Topology{Kind: kind,
				Bridge: []netip.Prefix{netip.MustParsePrefix("172.21.2.1/24")},
				Uplink: []netip.Prefix{netip.MustParsePrefix("192.168.20.1/24")}}, config)
			w.must(w.AddOutside(parse("192.168.20.7", "203.0.113.34")...))
			// A pod that no policy is about.
			w.pod("plain", "172.21.2.99")
			w.must(w.Write("plain.yaml", pod{name: "plain"}.at("172.21.2.99")))
			for _, name := range files {
				text := w.scenarioFile(name)
				w.must(w.Write(name, text))
				for _, doc := range strings.Split(text, "---\n") {
					if strings.Contains(doc, "\nkind: Pod\n") {
						w.pod(field(doc, "name:"), field(doc, "podIP:"))
					}
				}
			}
			w.must(w.Start())
			test(w)
		})
	}
}

func (w *world) scenarioFile(name string) string {
	w.t.Helper()
	b, err := os.ReadFile(filepath.Join("testdata", "scenarios", name))
	w.must(err)
	return string(b)
}

// field is the value of the first line of a document that has the key.
func field(doc, key string) string {
	_, rest, _ := strings.Cut(doc, key)
	line, _, _ := strings.Cut(rest, "\n")
	return strings.TrimSpace(line)
}

func TestScenario1Internet(t *testing.T) {
	const most = `
		updater 203.0.113.34 443 yes
		updater 203.0.113.34 53/UDP yes
		updater 203.0.113.34 ping yes
		updater 192.168.20.7 443 no
		updater 192.168.20.2 ping no
		updater 192.168.20.1 53/UDP no   # the gateway, in the local network
		updater uploader 80 no           # nobody reaches it
		203.0.113.34 updater 80 no
		192.168.20.7 updater ping no
		plain updater 80 no
		192.168.20.1 updater 80 yes      # the gateway's probes
		plain 192.168.20.7 443 yes
		203.0.113.34 plain 80 yes
	`
	t.Run("as the API has it", func(t *testing.T) {
		scenario(t, "", []string{"internet.yaml"}, func(w *world) {
			w.see("0.0.0.0/0 has the pods in it too", most+"updater plain 80 yes")
		})
	})
	t.Run("as the scenario promises", func(t *testing.T) {
		scenario(t, "ipBlockMatchesPods: false\n", []string{"internet.yaml"}, func(w *world) {
			w.see("no other pods", most+"updater plain 80 no")
		})
	})
}

const brokerTable = `
	sensor broker 8181 yes
	dashboard broker 8181 yes
	sensor broker 8182 no
	sensor broker 8181/UDP no
	sensor broker ping no
	sensor dashboard 8181 no
	broker sensor 8181 no
	plain broker 8181 no
	203.0.113.34 broker 8181 no
	sensor 203.0.113.34 443 no
	sensor plain 80 no
	broker 203.0.113.34 443 no
	plain 203.0.113.34 443 yes
`

func TestScenario2Broker(t *testing.T) {
	scenario(t, "", []string{"broker.yaml"}, func(w *world) {
		w.see("broker", brokerTable)
		w.serve("broker", "tcp", 8181)
		published := w.connects("sensor", "tcp", "172.21.2.20:8181")
		w.fails("plain", "tcp", "172.21.2.20:8181")
		w.apply("broker.yaml", replace(w.scenarioFile("broker.yaml"), "port: 8181", "port: 1883"))
		w.cut("the broker's port changed", published)
		w.see("and back", "sensor broker 1883 yes\n sensor broker 8181 no")
		w.apply("broker.yaml", w.scenarioFile("broker.yaml"))
		w.works("allowed again", published)
		w.see("broker", brokerTable)
		w.healthy()
	})
}

func TestScenario3Datastore(t *testing.T) {
	scenario(t, "", []string{"datastore.yaml"}, func(w *world) {
		w.see("datastore", `
			service datastore 3456 yes
			service datastore 3457 no
			service datastore 9191 no
			panel service 9191 yes
			panel service 3456 no
			panel datastore 3456 no
			plain datastore 3456 no
			plain service 9191 no
			datastore service 9191 no
			service panel 80 no
			service 203.0.113.34 443 no
			datastore 203.0.113.34 443 no
			panel 203.0.113.34 443 yes
			192.168.20.7 datastore 3456 no
		`)
		w.healthy()
	})
}

func TestScenario4LocalNetwork(t *testing.T) {
	scenario(t, "", []string{"broker.yaml", "local.yaml"}, func(w *world) {
		w.see("local", brokerTable+`
			printer 192.168.20.7 80 yes
			printer 192.168.20.7 ping yes
			printer 192.168.20.1 80 yes   # the gateway, in the local network
			printer 203.0.113.34 80 no
			printer broker 8181 no
			printer plain 80 no
			192.168.20.7 printer 80 no
			meter 192.168.20.7 80 yes
			meter broker 8181 yes         # both policies hold
			meter broker 8182 no
			meter 203.0.113.34 80 no
			meter printer 80 no
			plain meter 80 no
		`)
		w.healthy()
	})
}

// The mistakes that the scenarios' own documents make: each is named, the rest is
// enforced, and what was valid last stays.
func TestScenarioMistakes(t *testing.T) {
	scenario(t, "", []string{"broker.yaml", "datastore.yaml"}, func(w *world) {
		good := func() {
			w.t.Helper()
			w.apply("broker.yaml", w.scenarioFile("broker.yaml"))
			w.apply("datastore.yaml", w.scenarioFile("datastore.yaml"))
			w.healthy()
		}
		w.run("a colon is missing", func() {
			good()
			broken := replace(w.scenarioFile("broker.yaml"), "  - from:", "  - from", "port: 8181", "port: 9999")
			w.apply("broker.yaml", broken)
			w.degraded("broker.yaml", "- from:")
			w.see("the last valid version of the file", brokerTable)
			w.see("the other file", "service datastore 3456 yes\n plain datastore 3456 no")
			w.apply("datastore.yaml", replace(w.scenarioFile("datastore.yaml"), "port: 3456", "port: 3457"))
			w.see("which can be changed", "service datastore 3457 yes\n service datastore 3456 no")
		})
		w.run("an except with host bits", func() {
			good()
			w.apply("broker.yaml", replace(w.scenarioFile("broker.yaml"), "    - podSelector:\n        matchLabels:\n          role: broker-client\n",
				"    - ipBlock:\n        cidr: 172.21.2.0/24\n        except:\n        - 172.21.2.21/31\n"))
			w.see("masked", "sensor broker 8181 no # .20 and .21\n dashboard broker 8181 yes")
			w.warned("172.21.2.21/31", "broker.yaml")
			w.healthy()
			w.apply("broker.yaml", replace(w.scenarioFile("broker.yaml"), "    - podSelector:\n        matchLabels:\n          role: broker-client\n",
				"    - ipBlock:\n        cidr: 172.21.2.0/24\n        except:\n        - 172.21.2.1/24\n"))
			w.see("an except that is all of its block", "sensor broker 8181 no\n dashboard broker 8181 no")
			w.warned("172.21.2.1/24", "broker.yaml")
			w.healthy()
		})
		w.run("a Pod without apiVersion", func() {
			good()
			const pod = "apiVersion: v1\nkind: Pod\nmetadata:\n  name: sensor"
			broken := replace(w.scenarioFile("broker.yaml"), pod, strings.TrimPrefix(pod, "apiVersion: v1\n"), "port: 8181", "port: 8182")
			w.apply("broker.yaml", broken)
			w.degraded("broker.yaml", "Pod default/sensor", "apiVersion: v1")
			w.see("the pod as it was, and its siblings as they are", "sensor broker 8182 yes\n dashboard broker 8182 yes\n sensor broker 8181 no\n plain sensor 80 no")
			w.must(w.Remove("broker.yaml"))
			w.must(w.Reload())
			w.apply("broker.yaml", broken)
			w.degraded("Pod default/sensor")
			w.see("never valid: nobody knows that pod", "sensor broker 8182 no\n dashboard broker 8182 yes")
		})
		w.run("the same policy name twice", func() {
			good()
			w.apply("broker.yaml", replace(w.scenarioFile("broker.yaml"), "name: broker-client\n", "name: broker\n"))
			w.degraded("broker.yaml:49", "broker.yaml:29", "NetworkPolicy default/broker", "another name")
			w.see("the first holds, the second does not", "sensor broker 8181 yes\n plain broker 8181 no\n sensor 203.0.113.34 443 yes")
		})
		w.run("a label that matches nothing", func() {
			good()
			w.apply("datastore.yaml", replace(w.scenarioFile("datastore.yaml"), "        matchLabels:\n          role: service-pod\n", "        matchLabels:\n          role: pod-service\n"))
			w.see("enforced as written", "service datastore 3456 no\n panel service 9191 yes")
			w.healthy() // it is valid, and pods come later; check says it
			out, errs, code, err := w.Daemon.Run("check", w.Dir)
			w.must(err)
			if code != 0 || !strings.Contains(out+errs, "pod-service") || !strings.Contains(out+errs, "did you mean role: service-pod") {
				w.t.Errorf("check: exit code %d, want 0 and a hint at role: service-pod:\n%s%s", code, out, errs)
			}
			if _, _, code, err := w.Daemon.Run("check", "--strict", w.Dir); err != nil || code != 1 {
				w.t.Errorf("check --strict: %v, exit code %d, want 1", err, code)
			}
		})
	})
}
