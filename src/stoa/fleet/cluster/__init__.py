"""Replicas on a Ray cluster.

    gateway process ── pipe ── bridge process ── Ray ── ControllerActor (detached, one per fleet)
         │                                                   │ launches, asks
         └──── TCP, tokens ──── engine process ◀── ReplicaActor (detached, one per replica)

Ray places, watches and ends actors; what gateways send to engines does not pass through it. The gateway itself never imports
Ray: when the head is gone for long, Ray ends the processes that are connected to it, and the gateway has to go on.
"""
