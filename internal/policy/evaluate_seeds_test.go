package policy_test

import (
	"testing"

	"edgepolicy.io/edgepolicyd/internal/inventory"
)

// The four scenarios of the Izuma Edge documentation, with their mistakes
// corrected: who reaches whom as the text promises, and where it does not.

// scenarioFlow is one line of a scenario's table.
type scenarioFlow struct {
	from, to, port string
	want           bool
}

func (c *court) scenario(flows []scenarioFlow) {
	c.t.Helper()
	for _, f := range flows {
		c.want(f.want, f.from, f.to, []string{f.port})
	}
}

func TestScenario1Internet(t *testing.T) {
	c := newCourt(t, "192.168.20.1",
		testPod("default/pod-a", "role=internet-pod", "172.21.2.10"),
		testPod("default/pod-b", "role=internet-pod", "172.21.2.11"),
		testPod("default/plain", "", "172.21.2.12"),
		testPolicy("default/internet-pod-policy", selector("role=internet-pod"), ingress(),
			egress(rule(blockPeer("0.0.0.0/0", "192.168.20.0/24")))))
	flows := []scenarioFlow{
		{"default/pod-a", "93.184.216.34", "443/TCP", true},
		{"default/pod-a", "93.184.216.34", "ICMP", true},
		{"default/pod-a", "192.168.20.7", "443/TCP", false},
		{"default/pod-a", "192.168.20.1", "53/UDP", false},  // the gateway, in the local network
		{"default/pod-a", "default/pod-b", "80/TCP", false}, // its ingress denies it
		{"default/pod-a", "default/plain", "80/TCP", true},  // not what the text promises: 0.0.0.0/0 has pods too
		{"93.184.216.34", "default/pod-a", "80/TCP", false},
		{"default/plain", "default/pod-a", "80/TCP", false},
		{"default/plain", "default/pod-a", "ICMP", false},
	}
	c.scenario(flows)
	c.o.IPBlockMatchesPods = false // keeps the promise
	flows[5].want = false
	c.scenario(flows)
}

func TestScenario2MessageBroker(t *testing.T) {
	broker := testPod("default/pod-broker", "role=message-broker-pod", "172.21.2.10")
	c := newCourt(t, broker,
		testPod("default/pod-publisher", "role=message-client-pod", "172.21.2.11"),
		testPod("default/pod-subscriber", "role=message-client-pod", "172.21.2.12"),
		testPod("default/plain", "", "172.21.2.13"),
		brokerPolicy(), clientPolicy())
	c.scenario([]scenarioFlow{
		{"default/pod-publisher", "default/pod-broker", "8181/TCP", true},
		{"default/pod-subscriber", "default/pod-broker", "8181/TCP", true},
		{"default/pod-publisher", "default/pod-broker", "8182/TCP", false},
		{"default/pod-publisher", "default/pod-broker", "8181/UDP", false},
		{"default/pod-publisher", "default/pod-broker", "ICMP", false},
		{"default/pod-broker", "default/pod-publisher", "8181/TCP", false},
		{"default/pod-publisher", "default/pod-subscriber", "8181/TCP", false},
		{"default/plain", "default/pod-broker", "8181/TCP", false},
		{"default/pod-publisher", "default/plain", "8181/TCP", false},
		{"default/pod-publisher", "93.184.216.34", "443/TCP", false},
		{"93.184.216.34", "default/pod-broker", "8181/TCP", false},
		{"default/plain", "93.184.216.34", "443/TCP", true},
	})
}

func brokerPolicy() *inventory.Policy {
	return testPolicy("default/message-broker-pod-policy", selector("role=message-broker-pod"), egress(),
		ingress(rule(podPeer("role=message-client-pod"), port("8181/TCP"))))
}

func clientPolicy() *inventory.Policy {
	return testPolicy("default/message-client-pod-policy", selector("role=message-client-pod"), ingress(),
		egress(rule(podPeer("role=message-broker-pod"), port("8181/TCP"))))
}

func TestScenario3Datastore(t *testing.T) {
	// The text's datastore policy names role pod-service, which no pod has.
	for label, want := range map[string]bool{"service-pod": true, "pod-service": false} {
		t.Run(label, func(t *testing.T) {
			c := newCourt(t,
				testPod("default/pod-datastore", "role=datastore-pod", "172.21.2.10"),
				testPod("default/pod-service", "role=service-pod", "172.21.2.11"),
				testPod("default/pod-client", "role=service-client-pod", "172.21.2.12"),
				testPolicy("default/datastore-pod-policy", selector("role=datastore-pod"), egress(),
					ingress(rule(podPeer("role="+label), port("3456/TCP")))),
				testPolicy("default/service-pod-policy", selector("role=service-pod"),
					ingress(rule(podPeer("role=service-client-pod"), port("9191/TCP"))),
					egress(rule(podPeer("role=datastore-pod"), port("3456/TCP")))))
			c.scenario([]scenarioFlow{
				{"default/pod-service", "default/pod-datastore", "3456/TCP", want},
				{"default/pod-service", "default/pod-datastore", "9191/TCP", false},
				{"default/pod-client", "default/pod-service", "9191/TCP", true},
				{"default/pod-client", "default/pod-service", "3456/TCP", false},
				{"default/pod-client", "default/pod-datastore", "3456/TCP", false},
				{"default/pod-datastore", "default/pod-service", "9191/TCP", false},
				{"default/pod-service", "default/pod-client", "9191/TCP", false},
			})
		})
	}
}

func TestScenario4LocalNetwork(t *testing.T) {
	c := newCourt(t,
		testPod("default/pod-private", "network-access=local", "172.21.2.10"),
		testPod("default/pod-private-publisher", "network-access=local,role=message-client-pod", "172.21.2.11"),
		testPod("default/pod-broker", "role=message-broker-pod", "172.21.2.12"),
		brokerPolicy(), clientPolicy(),
		testPolicy("default/private-pod-policy", selector("network-access=local"), ingress(),
			egress(rule(blockPeer("192.168.20.0/24")))))
	c.scenario([]scenarioFlow{
		{"default/pod-private", "192.168.20.7", "502/TCP", true},
		{"default/pod-private", "192.168.20.7", "ICMP", true},
		{"default/pod-private", "192.168.21.7", "502/TCP", false},
		{"default/pod-private", "default/pod-broker", "8181/TCP", false},
		{"default/pod-private-publisher", "192.168.20.7", "502/TCP", true},
		{"default/pod-private-publisher", "default/pod-broker", "8181/TCP", true}, // both policies, added up
		{"default/pod-private-publisher", "default/pod-broker", "8182/TCP", false},
		{"default/pod-private-publisher", "93.184.216.34", "443/TCP", false},
		{"192.168.20.7", "default/pod-private", "502/TCP", false},
	})
}
