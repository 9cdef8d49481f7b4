//! Engine services: containers, images, networks, volumes, exec, events
