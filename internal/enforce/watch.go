package enforce

import (
	"context"
	"time"

	"edgepolicy.io/edgepolicyd/internal/gateway"
	"edgepolicy.io/edgepolicyd/internal/nft"
)

// watchCommits hands on who changes nftables.
func (e *Enforcer) watchCommits(ctx context.Context, changed chan<- nft.Commit) {
	for ctx.Err() == nil {
		err := nft.Watch(ctx, func(c nft.Commit) {
			select {
			case changed <- c:
			default: // too many to remember
			}
		})
		if err == nil || ctx.Err() != nil {
			return
		}
		e.log.Debug("watching nftables failed; trying again", "error", err)
		select {
		case <-ctx.Done():
		case <-time.After(time.Second):
		}
	}
}

// watchGateway tells the loop when addresses, links or routes changed.
func (e *Enforcer) watchGateway(ctx context.Context, changed chan<- struct{}) {
	for ctx.Err() == nil {
		err := gateway.Watch(ctx, func() {
			select {
			case changed <- struct{}{}:
			default:
			}
		})
		if err == nil || ctx.Err() != nil {
			return
		}
		e.log.Error("watching the gateway's addresses and routes failed; trying again", "error", err)
		select {
		case <-ctx.Done():
		case <-time.After(time.Second):
		}
	}
}

// readGateway learns the gateway's own addresses and next hops (S33).
func (e *Enforcer) readGateway() {
	ctx, cancel := context.WithTimeout(context.Background(), kernelTimeout)
	defer cancel()
	f, err := gateway.Read(ctx)
	e.gatewayErr = err
	if err != nil {
		e.log.Error("the gateway's own addresses can't be read; the last known ones stay", "error", err)
		return
	}
	e.own, e.nextHops = f.Addresses, f.NextHops
	e.linksOld, e.interfacesOld = true, true
}
